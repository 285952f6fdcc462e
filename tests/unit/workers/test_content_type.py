"""The content-type model, as served: it says what Magika itself says."""

import io
import json
import zipfile
from collections.abc import Iterator
from pathlib import Path

import magika
import numpy as np
import PIL.Image
import pytest

from schemas.tensors import to_array, unpack_bytes
from tests.models import a_request, load
from workers.models import LoadedModel
from workers.repository import find_model


@pytest.fixture(scope="module")
def model(test_models: Path) -> Iterator[LoadedModel]:
    loaded = load(find_model(test_models, "content-type"))
    loaded.warm_up()
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def original() -> magika.Magika:
    return magika.Magika()


def a_png() -> bytes:
    file = io.BytesIO()
    PIL.Image.effect_noise((64, 64), 50).save(file, "PNG")
    return file.getvalue()


def a_zip() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("notes.txt", "some notes, " * 200)
    return file.getvalue()


FILES = {
    "python": Path(__file__).read_bytes(),
    "png": a_png(),
    "zip": a_zip(),
    "json": json.dumps({"name": "Ada", "born": 1815, "tags": ["maths", "poetry"]}, indent=2).encode(),
    "html": b"<!DOCTYPE html>\n<html><head><title>Hello</title></head><body><p>Hi</p></body></html>\n",
    "shell": b'#!/bin/bash\nset -euo pipefail\nfor f in *.txt; do\n  echo "$f" | tr a-z A-Z\ndone\n',
}


def labels_of(model: LoadedModel, *files: bytes) -> list[str]:
    [result] = model.run([model.prepare(a_request(file=files))])
    label, score = model.finish(result)
    assert to_array(score).shape == (len(files), 3)
    return [value.decode() for value in unpack_bytes(label.data)[::3]]


@pytest.mark.parametrize("kind", FILES)
def test_a_file_is_named_for_what_it_is(model: LoadedModel, original: magika.Magika, kind: str) -> None:
    assert labels_of(model, FILES[kind]) == [kind]
    assert str(original.identify_bytes(FILES[kind]).output.label) == kind


def test_scores_are_those_of_the_original(model: LoadedModel, original: magika.Magika) -> None:
    [result] = model.run([model.prepare(a_request(file=[FILES["json"]]))])
    np.testing.assert_allclose(result["score"][0, 0], original.identify_bytes(FILES["json"]).score, rtol=1e-4)


def test_files_of_any_length_agree_with_the_original(model: LoadedModel, original: magika.Magika) -> None:
    source = FILES["python"]
    files = [source[:700], b"\n \t" + source[:1500] + b"\n\n ", source[:1024], source * 3]
    assert labels_of(model, *files) == [str(original.identify_bytes(file).output.label) for file in files]


def test_files_share_a_batch_and_each_gets_its_own_answer(model: LoadedModel) -> None:
    batch = [model.prepare(a_request(file=[FILES[kind]])) for kind in ("png", "python", "zip")]
    assert len({model.shape_key(arrays) for arrays in batch}) == 1
    assert [result["label"][0, 0] for result in model.run(batch)] == [b"png", b"python", b"zip"]


def test_an_empty_file_gets_an_answer_too(model: LoadedModel) -> None:
    assert len(labels_of(model, b"")) == 1
