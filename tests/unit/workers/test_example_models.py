"""The exported example models, as served: they see what is in a photo and what sentences have in common."""

from pathlib import Path

import numpy as np
import pytest

from schemas.tensors import Array, to_array, unpack_bytes
from tests.models import a_request, load
from workers.models import LoadedModel
from workers.repository import find_model

DATA = Path(__file__).parents[3] / ".model-serving"

pytestmark = [
    pytest.mark.examples,
    pytest.mark.skipif(
        not (DATA / "models/minilm").exists(), reason="scripts/examples has not exported the models"
    ),
]


@pytest.fixture(scope="module")
def efficientnet() -> LoadedModel:
    model = load(find_model(DATA / "models", "efficientnet-lite0"))
    model.warm_up()
    return model


@pytest.fixture(scope="module")
def minilm() -> LoadedModel:
    model = load(find_model(DATA / "models", "minilm"))
    model.warm_up()
    return model


def best_labels(model: LoadedModel, photo: str) -> list[str]:
    value = (DATA / "samples" / photo).read_bytes()
    [result] = model.run([model.prepare(a_request(image=[value]))])
    return [label.decode() for label in unpack_bytes(model.finish(result)[0].data)]


def embeddings(model: LoadedModel, *texts: str) -> Array:
    batch = [model.prepare(a_request(text=[text.encode()])) for text in texts]
    return np.concatenate([to_array(model.finish(result)[0]) for result in model.run(batch)])


def test_a_cup_of_coffee_is_an_espresso(efficientnet: LoadedModel) -> None:
    assert best_labels(efficientnet, "coffee.png")[0] == "espresso"


def test_a_cat_is_a_cat(efficientnet: LoadedModel) -> None:
    assert best_labels(efficientnet, "chelsea.png")[0] in ("tiger cat", "Egyptian cat", "tabby, tabby cat")


def test_sentences_of_like_meaning_have_like_embeddings(minilm: LoadedModel) -> None:
    eating, meal, stocks = embeddings(
        minilm, "A man is eating food.", "Someone eats a meal.", "The stock market crashed today."
    )
    assert eating @ meal == pytest.approx(0.761, abs=0.01)
    assert abs(eating @ stocks) < 0.1


def test_padding_does_not_change_an_embedding(minilm: LoadedModel) -> None:
    text = "A man is eating food."
    together = minilm.prepare(a_request(text=[text.encode(), b"word " * 60]))
    [result] = minilm.run([together])
    np.testing.assert_allclose(result["sentence_embedding"][0], embeddings(minilm, text)[0], atol=1e-5)
