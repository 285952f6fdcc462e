"""Ask a model over NATS alone, with JSON. Needs only: pip install nats-py

usage: publish_json.py MODEL '{"input": ["..."]}'    (NATS_URL, NATS_USER, NATS_PASSWORD in the environment)
"""

import asyncio
import json
import os
import sys

import nats


async def main(model: str, inputs: str) -> None:
    """Send one request, print the reply."""
    client = await nats.connect(
        os.environ["NATS_URL"],
        user=os.environ["NATS_USER"],
        password=os.environ["NATS_PASSWORD"],
        inbox_prefix="_INBOX_publisher",
    )
    inbox = client.new_inbox()
    replies = await client.subscribe(inbox)
    headers = {"Content-Type": "application/json", "Ms-Reply-To": inbox, "Ms-Deadline-Ms": "10000"}
    request = json.dumps({"v": 1, "model": model, "inputs": json.loads(inputs)}).encode()
    await client.jetstream().publish(f"infer.{model}.interactive", request, headers=headers)
    print((await replies.next_msg(timeout=10)).data.decode())
    await client.close()


if __name__ == "__main__":
    asyncio.run(main(*sys.argv[1:]))
