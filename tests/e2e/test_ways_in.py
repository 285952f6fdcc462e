"""The four kinds of user ask the same model the same thing, and get the same answer."""

import base64
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx
import msgpack
import pytest

from benchmarks.stack import Stack
from schemas.tensors import unpack_bytes
from scripts.stack.folder import DataFolder
from tests.servers import wait_until

pytestmark = pytest.mark.e2e

MODEL = "content-type"
EXAMPLES = Path(__file__).parents[2] / "docs" / "examples"
FILE = Path(__file__)


@pytest.fixture
def expected(http: httpx.Client) -> list[Any]:
    """The labels and scores that a raw body gets."""
    headers = {"Content-Type": "application/octet-stream"}
    answer = http.post(f"/v1/predict?model={MODEL}", content=FILE.read_bytes(), headers=headers)
    assert answer.status_code == 200, answer.text
    return labels_and_scores(answer.json())


def labels_and_scores(answer: dict[str, Any]) -> list[Any]:
    return [output["data"] for output in sorted(answer["outputs"], key=lambda output: str(output["name"]))]


def test_a_real_file_gets_its_real_type(expected: list[Any]) -> None:
    labels, scores = expected
    assert labels[0][0] == "python"
    assert scores[0][0] > 0.9


def test_json_with_base64_gives_the_same_answer(http: httpx.Client, expected: list[Any]) -> None:
    tensor = {"name": "file", "base64": base64.b64encode(FILE.read_bytes()).decode()}
    answer = http.post("/v1/predict", json={"model": MODEL, "inputs": [tensor]})
    assert labels_and_scores(answer.json()) == expected


def test_text_in_json_gives_the_same_answer(http: httpx.Client, expected: list[Any]) -> None:
    answer = http.post("/v1/predict", json={"model": MODEL, "inputs": {"file": [FILE.read_text()]}})
    assert labels_and_scores(answer.json()) == expected


def test_msgpack_gives_the_same_answer(http: httpx.Client, expected: list[Any]) -> None:
    content = FILE.read_bytes()
    tensor = {
        "name": "file",
        "dtype": "bytes",
        "shape": [1],
        "data": len(content).to_bytes(4, "little") + content,
    }
    body = msgpack.packb({"v": 1, "model": MODEL, "inputs": [tensor]})
    headers = {"Content-Type": "application/msgpack", "Accept": "application/msgpack"}
    reply = msgpack.unpackb(http.post("/v1/predict", content=body, headers=headers).content)
    labels = next(output for output in reply["outputs"] if output["name"] == "label")
    assert [label.decode() for label in unpack_bytes(labels["data"])] == expected[0][0]


def test_a_job_gives_the_same_answer(http: httpx.Client, expected: list[Any]) -> None:
    body = {"model": MODEL, "inputs": {"file": [FILE.read_text()]}}
    submitted = http.post("/v1/jobs", json=body)
    assert submitted.status_code == 202, submitted.text
    job = submitted.json()["id"]
    wait_until(lambda: http.get(f"/v1/jobs/{job}").json()["state"] == "succeeded", "the job to end")
    results = http.get(f"/v1/jobs/{job}/results").json()["results"]
    assert [labels_and_scores(result) for result in results] == [expected]


def test_respond_async_answers_where_to_look(http: httpx.Client, expected: list[Any]) -> None:
    body = {"model": MODEL, "inputs": {"file": [FILE.read_text()]}}
    accepted = http.post("/v1/predict", json=body, headers={"Prefer": "respond-async"})
    assert accepted.status_code == 202
    where = accepted.headers["location"]
    wait_until(lambda: http.get(where).json()["state"] == "succeeded", "the request to end")
    results = http.get(f"{where}/results").json()["results"]
    assert [labels_and_scores(result) for result in results] == [expected]


def test_a_publisher_with_msgpack_gets_the_same_answer(stack: Stack, expected: list[Any]) -> None:
    out = run_example(stack, "publish_msgpack.py", MODEL, "file", str(FILE))
    assert expected[0][0][0] in out
    assert "stored as INFER " in out


def test_a_publisher_with_json_gets_the_same_answer(stack: Stack, expected: list[Any]) -> None:
    out = run_example(stack, "publish_json.py", MODEL, json.dumps({"file": [FILE.read_text()]}))
    assert labels_and_scores(json.loads(out)) == expected


def test_the_command_gives_the_same_answer(stack: Stack, expected: list[Any]) -> None:
    command = [sys.executable, "-m", "scripts.cli", "predict", MODEL, str(FILE), "--output", "json"]
    options = ["--url", stack.url, "--api-key", stack.api_key]
    out = subprocess.run([*command, *options], check=True, capture_output=True, text=True, timeout=60).stdout
    assert labels_and_scores(json.loads(out)) == expected


def run_example(stack: Stack, script: str, *arguments: str) -> str:
    folder = DataFolder(stack.data)
    endpoints = folder.endpoints()
    assert endpoints is not None
    environment = {
        **os.environ,
        "NATS_URL": endpoints.nats,
        "NATS_USER": "publisher",
        "NATS_PASSWORD": folder.read_secrets()["NATS_PUBLISHER_PASSWORD"],
    }
    command = [sys.executable, str(EXAMPLES / script), *arguments]
    ran = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
    assert ran.returncode == 0, ran.stderr
    return ran.stdout
