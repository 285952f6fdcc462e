"""The gateway with a dispatcher that answers at once, without the queue: what the queue is measured against.

Everything else is the same: HTTP, keys, parsing, the blob store's limits, the answer.
"""

import uvicorn

from gateway.app import create_app
from gateway.call import Call
from gateway.settings import Settings
from schemas.envelope import InferRequest, Result
from schemas.subjects import Lane
from schemas.tensors import Tensor


class EchoDispatcher:
    """Answers each input as output `y`, as the identity model would."""

    async def infer(
        self, call: Call, request: InferRequest, *, timeout_s: float, lane: Lane = Lane.LIVE
    ) -> Result:
        """Return the inputs."""
        outputs = tuple(Tensor("y", tensor.dtype, tensor.shape, tensor.data) for tensor in request.inputs)
        timing = {"queue_ms": 0.1, "worker_ms": 0.1, "run_ms": 0.1}
        return Result(id=call.request_id, model=request.model, version=1, outputs=outputs, timing=timing)


def main() -> None:
    """Serve until told to stop."""
    settings = Settings()
    app = create_app(settings, dispatcher=EchoDispatcher())
    uvicorn.run(
        app,
        host=settings.gateway.host,
        port=settings.gateway.port,
        loop="uvloop",
        http="httptools",
        access_log=False,
        log_config=None,
    )


if __name__ == "__main__":
    main()
