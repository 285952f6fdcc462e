"""The predict route over real NATS and Valkey, with a small worker of the tests' own."""

from pathlib import Path

import pytest

from tests.integration.gateway_stand import standing
from tests.servers import NatsServer, ValkeyServer

pytestmark = pytest.mark.integration


async def test_a_json_request_is_answered_with_json(
    nats_server: NatsServer, valkey_server: ValkeyServer, tmp_path: Path
) -> None:
    async with standing(nats_server, valkey_server, tmp_path) as stand:
        answer = await stand.client.post("/v1/predict", json={"model": "echo", "inputs": {"x": [[1, 2]]}})
    assert answer.status_code == 200, answer.text
    assert answer.json()["outputs"] == [
        {"name": "x", "dtype": "float32", "shape": [1, 2], "data": [[1.0, 2.0]]}
    ]
