"""What a user gives a model: files, text and JSON, and the bodies of HTTP that they become."""

import base64
import json
import mimetypes
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx

from schemas.models import Signature, raw_input_of
from scripts.cli.calls import answer_of
from scripts.cli.exits import Exit, Stop

BINARY = "application/octet-stream"
_CHUNK_BYTES = 1 << 18


@dataclass(frozen=True, slots=True)
class Body:
    """A body to post, and the query beside it."""

    content: bytes
    content_type: str
    query: Mapping[str, str]


def raw_body(model: str, content: bytes, *, name: str = "") -> Body:
    """Post bytes as they are. The gateway reads JSON and forms itself, so those go as plain bytes too."""
    guessed, encoding = mimetypes.guess_type(name)
    is_image = guessed is not None and guessed.startswith("image/") and encoding is None
    return Body(content, guessed if is_image and guessed else BINARY, {"model": model})


def json_body(model: str, inputs: Any) -> Body:
    """Post inputs as JSON: tensors, or a map from name to data."""
    content = json.dumps({"model": model, "inputs": inputs}).encode()
    return Body(content, "application/json", {})


def with_timeout(body: Body, timeout_s: float | None) -> Body:
    """Give the deadline to the gateway, where the body keeps it."""
    if timeout_s is None:
        return body
    timeout_ms = max(1, round(timeout_s * 1000))
    if body.content_type != "application/json":
        return Body(body.content, body.content_type, {**body.query, "timeout_ms": str(timeout_ms)})
    content = json.dumps({**json.loads(body.content), "timeout_ms": timeout_ms}).encode()
    return Body(content, body.content_type, body.query)


def parse_inputs(text: str) -> Any:
    """Read `--json`: the inputs, or a whole body that has `inputs`. Raises Stop if it is no JSON."""
    try:
        value = json.loads(text)
    except ValueError as error:
        raise Stop(Exit.USAGE, f"--json is not valid JSON: {error}") from error
    if isinstance(value, dict) and isinstance(value.get("inputs"), dict | list):
        return value["inputs"]
    return value


def raw_input_name(client: httpx.Client, model: str) -> str:
    """Ask the gateway for the one input of a model that takes text or a file. Raises Stop if it has none."""
    models = answer_of(client.get("/v1/models"))["models"]
    for card in models:
        if card["name"] == model:
            signature = Signature.model_validate(card["signature"])
            if name := raw_input_of(signature):
                return name
            takes = ", ".join(f"{spec.name} ({spec.dtype})" for spec in signature.inputs)
            raise Stop(Exit.USAGE, f"{model} takes {takes}, not text or a file: use --json or --jsonl")
    raise Stop(Exit.REFUSED, f"there is no model {model!r}; see 'model-serving models list'")


def file_lines(paths: Sequence[Path], input_name: str) -> Iterator[bytes]:
    """Turn each file into a line of JSONL, one file in memory at a time."""
    for path in paths:
        element = base64.b64encode(path.read_bytes()).decode()
        tensor = {"name": input_name, "dtype": "bytes", "shape": [1], "base64": element}
        yield json.dumps({"inputs": [tensor]}).encode() + b"\n"


def file_chunks(path: Path) -> Iterator[bytes]:
    """Read a file piece by piece."""
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            yield chunk
