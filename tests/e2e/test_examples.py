"""The example models give real answers: photos their labels, sentences their neighbours."""

import base64
from pathlib import Path

import httpx
import pytest

from benchmarks.stack import Stack

pytestmark = [pytest.mark.e2e, pytest.mark.examples]


def top_label(stack: Stack, photo: bytes, media_type: str) -> str:
    answer = httpx.post(
        f"{stack.url}/v1/predict?model=efficientnet-lite0",
        content=photo,
        headers={**stack.auth, "Content-Type": media_type},
        timeout=30,
    )
    assert answer.status_code == 200, answer.text
    outputs = {output["name"]: output["data"] for output in answer.json()["outputs"]}
    return str(outputs["label"][0][0])


def test_a_photo_of_coffee_is_espresso(stack: Stack, samples: Path) -> None:
    assert top_label(stack, (samples / "coffee.png").read_bytes(), "image/png") == "espresso"


def test_a_photo_of_a_cat_is_a_cat(stack: Stack, samples: Path) -> None:
    assert "cat" in top_label(stack, (samples / "chelsea.png").read_bytes(), "image/png")


def test_what_is_no_photo_is_refused_and_says_what_would_be(stack: Stack, samples: Path) -> None:
    answer = httpx.post(
        f"{stack.url}/v1/predict?model=efficientnet-lite0",
        content=b"GIF89a nonsense",
        headers={**stack.auth, "Content-Type": "image/gif"},
        timeout=30,
    )
    assert answer.status_code in (400, 415)
    assert "JPEG" in answer.json()["detail"]


def test_similar_sentences_are_closer_than_unrelated_ones(stack: Stack, samples: Path) -> None:
    texts = ["A man is eating food.", "Someone eats a meal.", "The stock market crashed today."]
    answer = httpx.post(
        f"{stack.url}/v1/predict",
        json={"model": "minilm", "inputs": {"text": texts}},
        headers=stack.auth,
        timeout=30,
    )
    assert answer.status_code == 200, answer.text
    eating, meal, market = answer.json()["outputs"][0]["data"]
    assert similarity(eating, meal) > 0.6
    assert similarity(eating, market) < 0.2


def similarity(a: list[float], b: list[float]) -> float:
    """The dot product; the model gives unit vectors."""
    return sum(x * y for x, y in zip(a, b, strict=True))


def test_one_photo_through_json_is_the_same_photo(stack: Stack, samples: Path) -> None:
    photo = (samples / "coffee.png").read_bytes()
    tensor = {"name": "image", "base64": base64.b64encode(photo).decode()}
    answer = httpx.post(
        f"{stack.url}/v1/predict",
        json={"model": "efficientnet-lite0", "inputs": [tensor]},
        headers=stack.auth,
        timeout=30,
    )
    labels = next(o for o in answer.json()["outputs"] if o["name"] == "label")
    assert labels["data"][0][0] == "espresso"
