"""Ask a model over NATS alone, with msgpack. Needs only: pip install nats-py msgpack

usage: publish_msgpack.py MODEL INPUT FILE        (NATS_URL, NATS_USER and NATS_PASSWORD in the environment)
"""

import asyncio
import os
import sys

import msgpack
import nats


async def main(model: str, input_name: str, file: str) -> None:
    """Send one file, print the outputs."""
    client = await nats.connect(
        os.environ["NATS_URL"],
        user=os.environ["NATS_USER"],
        password=os.environ["NATS_PASSWORD"],
        inbox_prefix="_INBOX_publisher",  # replies may go nowhere else
    )
    with open(file, "rb") as opened:  # noqa: ASYNC230 - nothing else runs here
        content = opened.read()
    element = len(content).to_bytes(4, "little") + content  # an element of dtype `bytes`
    tensor = {"name": input_name, "dtype": "bytes", "shape": [1], "data": element}
    inbox = client.new_inbox()
    replies = await client.subscribe(inbox)
    headers = {"Ms-Reply-To": inbox, "Ms-Deadline-Ms": "10000"}
    request = msgpack.packb({"v": 1, "model": model, "inputs": [tensor]})
    stored = await client.jetstream().publish(f"infer.{model}.interactive", request, headers=headers)
    print(f"stored as {stored.stream} {stored.seq}")  # from here on it is not lost
    reply = msgpack.unpackb((await replies.next_msg(timeout=10)).data)
    print(reply["outputs"] if reply["kind"] == "result" else f"{reply['code']}: {reply['message']}")
    await client.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
