"""Text as callers send it: token ids of few different lengths, cut and bounded."""

from pathlib import Path

import pytest
from tokenizers import Tokenizer, models, pre_tokenizers, processors

from schemas.errors import InvalidInput, ModelUnavailable, TooLarge
from schemas.models import TensorSpec, TextPreprocessing
from workers.transforms.text import PAD_TO_MULTIPLE, Text

CLS, SEP, PAD, A, B = range(5)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    vocabulary = {"[CLS]": CLS, "[SEP]": SEP, "[PAD]": PAD, "a": A, "b": B}
    tokenizer = Tokenizer(models.WordLevel(vocabulary, unk_token="[PAD]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer.post_processor = processors.BertProcessing(("[SEP]", SEP), ("[CLS]", CLS))
    tokenizer.enable_padding(pad_id=PAD, pad_token="[PAD]")
    tokenizer.save(str(tmp_path / "tokenizer.json"))
    return tmp_path


def a_text(folder: Path, inputs: tuple[str, ...] = ("input_ids", "attention_mask"), **config: object) -> Text:
    specs = [TensorSpec(name=name, dtype="int64", shape=(-1, -1)) for name in inputs]
    return Text(TextPreprocessing.model_validate({"name": "text", **config}), folder, specs)


def test_a_text_becomes_ids_and_a_mask_padded_to_a_multiple(folder: Path) -> None:
    arrays = a_text(folder).run([b"a b"], field="inputs[0]")
    padding = PAD_TO_MULTIPLE - 4
    assert arrays["input_ids"].tolist() == [[CLS, A, B, SEP] + [PAD] * padding]
    assert arrays["attention_mask"].tolist() == [[1] * 4 + [0] * padding]
    assert arrays["input_ids"].dtype == "int64"


def test_texts_of_one_request_share_the_length_of_the_longest(folder: Path) -> None:
    arrays = a_text(folder).run([b"a", b"a " * 20], field="inputs[0]")
    assert arrays["input_ids"].shape == (2, 2 * PAD_TO_MULTIPLE)


def test_requests_of_similar_length_get_one_shape_so_they_can_share_a_batch(folder: Path) -> None:
    text = a_text(folder)
    shapes = {text.run([b"a " * n], field="inputs[0]")["input_ids"].shape for n in range(PAD_TO_MULTIPLE - 1)}
    assert shapes == {(1, PAD_TO_MULTIPLE)}


def test_a_long_text_is_cut_and_never_padded_beyond_the_limit(folder: Path) -> None:
    ids = a_text(folder, max_tokens=10).run([b"a " * 100], field="inputs[0]")["input_ids"]
    assert ids.tolist() == [[CLS, *[A] * 8, SEP]]


def test_only_what_the_model_takes_is_made(folder: Path) -> None:
    assert list(a_text(folder, ("token_type_ids",)).run([b"a"], field="inputs[0]")) == ["token_type_ids"]


def test_a_text_over_the_limit_is_refused_with_the_limit(folder: Path) -> None:
    with pytest.raises(TooLarge, match="item 1 of 'text' is longer than the limit of 4 bytes") as refused:
        a_text(folder, max_bytes=4).run([b"abcd", b"abcde"], field="inputs[0]")
    assert refused.value.field == "inputs[0]"


def test_bytes_that_are_no_text_are_refused(folder: Path) -> None:
    with pytest.raises(InvalidInput, match="item 0 of 'text' is not UTF-8"):
        a_text(folder).run([b"\xff\xfe"], field="inputs[0]")


def test_a_tokenizer_that_is_missing_or_broken_is_named(folder: Path) -> None:
    with pytest.raises(ModelUnavailable, match=r"'other\.json' is missing"):
        a_text(folder, tokenizer="other.json")
    (folder / "tokenizer.json").write_text("{}")
    with pytest.raises(ModelUnavailable, match=r"'tokenizer\.json' is not a tokenizer"):
        a_text(folder)
