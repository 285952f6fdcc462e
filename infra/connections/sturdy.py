"""nats-py's client, made to outlive what strangers and broken servers send it.

Each method replaces one of nats-py 2.16 that lets a single message, or a word from the server, end the
connection for good. They are not part of its public interface; `tests/integration/test_sturdy.py` shows on
a real server that they are still called, and still needed.
"""

import asyncio

import nats.errors
from nats.aio.client import PING_PROTO, Client
from nats.aio.subscription import Subscription
from nats.protocol.parser import STALE_CONNECTION

UNREADABLE = "Ms-Unreadable-Headers"


class SturdyClient(Client):
    """A client whose connection always comes back."""

    async def retire(self, subscription: Subscription, timeout_s: float) -> None:
        """Stop listening, after what the server has sent already was heard; without a server, at once.

        nats-py keeps a subscription whose draining failed, and renews it with every reconnection.
        """
        try:
            if self.is_connected:
                async with asyncio.timeout(timeout_s):
                    await subscription.drain()  # type: ignore[no-untyped-call]
        except (nats.errors.Error, TimeoutError):
            pass  # the connection was lost meanwhile, and with it what was on its way
        finally:
            subscription._stop_processing()
            self._remove_sub(subscription._id)

    async def _process_headers(self, headers: bytes) -> dict[str, str] | None:
        """Read a header block, which may be any bytes that a publisher chose.

        nats-py raises on some of them, in its read loop, which ends.
        """
        try:
            parsed: dict[str, str] | None = await super()._process_headers(headers)
        except (IndexError, ValueError):
            return {UNREADABLE: "1"}
        return parsed

    async def _process_err(self, err_msg: str) -> None:
        """Report what the server complains of. If it also closes the connection, we connect again.

        nats-py closes the client for good after every complaint but two.
        """
        if STALE_CONNECTION in err_msg:
            await super()._process_err(err_msg)
            return
        error = nats.errors.Error(f"nats: {err_msg.strip(chr(39))}")
        self._err = error
        await self._error_cb(error)

    async def _process_pong(self) -> None:
        """Answer the `flush` that waits for this pong, if it still does.

        nats-py raises in its read loop, which ends, if that flush was cancelled or ran out of time.
        """
        if self._pongs and self._pongs[0].done():
            self._pongs.pop(0)
            self._pings_outstanding = 0
            return
        await super()._process_pong()

    async def _send_ping(self, future: asyncio.Future[bool] | None = None) -> None:
        """Send a PING behind what was published before it, so that its pong says that all of it was read.

        nats-py writes it ahead of what it has pending, so `flush` and `drain` return too early.
        """
        self._pongs.append(asyncio.get_running_loop().create_future() if future is None else future)
        await self._send_command(PING_PROTO)
        await self._flush_pending()

    async def _attempt_reconnect(self) -> None:
        """Drop the old socket with what was not sent yet, and connect again.

        nats-py waits until a peer that may be gone for good has taken that, which can be 15 minutes.
        """
        self.abort()
        await super()._attempt_reconnect()

    def abort(self) -> None:
        """Drop the socket at once. Nothing happens if there is none."""
        if (socket := self._socket) is not None:
            socket.abort()

    @property
    def unsent_bytes(self) -> int:
        """How much waits for the server to read."""
        return 0 if self._socket is None else self._socket.get_write_buffer_size()

    @property
    def _socket(self) -> asyncio.WriteTransport | None:
        writer: asyncio.StreamWriter | None = getattr(self._transport, "_io_writer", None)
        return None if writer is None else writer.transport
