"""A service that answers 200 to everything, keeps a process of its own, and says when it is stopped."""

import signal
import subprocess
import sys
import threading
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer


class _Handler(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_response(200)
        self.end_headers()

    def log_message(self, *_: object) -> None:
        """Log nothing."""


def _main(name: str, port: str, how: str) -> None:
    if how == "dying":
        sys.exit(f"{name} can not start")
    server = ThreadingHTTPServer(("127.0.0.1", int(port)), _Handler)
    # As the processes of a gateway do, this one does not end with its parent by itself.
    subprocess.Popen([sys.executable, "-S", "-c", "import time; time.sleep(3600)"])

    def on_sigterm(*_: object) -> None:
        sys.stdout.write(f"asked to stop {name}\n")
        sys.stdout.flush()
        if how != "deaf":
            threading.Thread(target=server.shutdown).start()

    signal.signal(signal.SIGTERM, on_sigterm)
    server.serve_forever(poll_interval=0.01)
    server.server_close()


if __name__ == "__main__":
    _main(*sys.argv[1:])
