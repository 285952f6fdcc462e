"""A caller who closes the connection: what it waited for is not started, and nobody else notices."""

import json
import socket
import threading

import httpx
import pytest

from tests.faults.chaos_model import ANSWER, SLEEP
from tests.faults.stand import KEY, MODEL, Client, System
from tests.servers import wait_until

pytestmark = pytest.mark.e2e

CANCELLED = 'outcome="cancelled",route="/v1/predict"} 1.0'


def test_what_a_caller_who_left_had_asked_is_never_started(system: System, client: Client) -> None:
    system.install_model(max_batch_size=1)
    system.start("workers")
    client.until_served()
    answers: dict[int, httpx.Response] = {}

    def ask(number: int, action: int, amount: float) -> None:
        answers[number] = client.predict([[number, action, amount]])

    running = threading.Thread(target=ask, args=(1, SLEEP, 3.0))
    running.start()
    wait_until(lambda: system.starts()[1] == 1, "the long row to run")
    leaver = open_request(client, [[2, ANSWER, 0]])
    neighbour = threading.Thread(target=ask, args=(3, ANSWER, 0))
    neighbour.start()
    leaver.settimeout(0.3)
    with pytest.raises(TimeoutError):
        leaver.recv(1)
    leaver.close()
    wait_until(lambda: CANCELLED in client.http.get("/metrics").text, "the gateway to notice")
    assert running.is_alive()
    for thread in (running, neighbour):
        thread.join(20)
    assert {number: answer.status_code for number, answer in answers.items()} == {1: 200, 3: 200}
    assert system.starts() == {1: 1, 3: 1}
    assert 'outcome="error"' not in client.http.get("/metrics").text


def open_request(client: Client, rows: list[list[float]]) -> socket.socket:
    """Ask, and do not wait for the answer."""
    url = httpx.URL(client.url)
    body = json.dumps({"model": MODEL, "inputs": {"x": rows}})
    head = f"POST /v1/predict HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {KEY}\r\n"
    connection = socket.create_connection((url.host, url.port or 0))
    connection.sendall(
        f"{head}Content-Type: application/json\r\nContent-Length: {len(body)}\r\n\r\n{body}".encode()
    )
    return connection
