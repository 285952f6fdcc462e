"""Text: UTF-8 becomes token ids, with the `tokenizer.json` that lies beside the model."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from tokenizers import Tokenizer

from schemas.errors import InvalidInput, ModelUnavailable, TooLarge
from schemas.models import TensorSpec, TextPreprocessing
from schemas.tensors import BYTES
from workers.engines.base import Arrays
from workers.files import model_file

# Only requests of one sequence length share a batch: a multiple keeps the lengths few and the padding short.
PAD_TO_MULTIPLE = 16
_MADE = ("input_ids", "attention_mask", "token_type_ids")


class Text:
    """Tokenizes, cuts at `max_tokens`, and pads to the longest text of the request.

    The length is rounded up to a multiple of `PAD_TO_MULTIPLE`, but not above `max_tokens`.
    """

    public = TensorSpec(name="text", dtype=BYTES, shape=(-1,))

    def __init__(self, config: TextPreprocessing, folder: Path, inputs: Sequence[TensorSpec]) -> None:
        self._max_tokens = config.max_tokens
        self._max_bytes = config.max_bytes
        self._names = [spec.name for spec in inputs if spec.name in _MADE]
        self._tokenizer = _load_tokenizer(folder, config)
        self._padding_id = (self._tokenizer.padding or {}).get("pad_id", 0)
        self._tokenizer.enable_truncation(config.max_tokens)
        self._tokenizer.no_padding()  # done below, to a length that other requests share

    def makes(self) -> tuple[TensorSpec, ...]:
        """Return int64 `[-1, -1]` for ids, mask and type ids; a model may take a part of them."""
        return tuple(TensorSpec(name=name, dtype="int64", shape=(-1, -1)) for name in _MADE)

    def run(self, values: Sequence[bytes], *, field: str) -> Arrays:
        """Turn `n` texts into `[n, tokens]`. Blocks. Raises InvalidInput at `field`."""
        texts = [self._text(value, field=field, item=i) for i, value in enumerate(values)]
        encodings = self._tokenizer.encode_batch_fast(texts)
        shape = (len(encodings), self._padded(max(len(encoding.ids) for encoding in encodings)))
        arrays = {name: np.zeros(shape, dtype=np.int64) for name in _MADE}
        arrays["input_ids"][:] = self._padding_id
        for i, encoding in enumerate(encodings):
            tokens = len(encoding.ids)
            arrays["input_ids"][i, :tokens] = encoding.ids
            arrays["attention_mask"][i, :tokens] = encoding.attention_mask
            arrays["token_type_ids"][i, :tokens] = encoding.type_ids
        return {name: arrays[name] for name in self._names}

    def _text(self, value: bytes, *, field: str, item: int) -> str:
        if len(value) > self._max_bytes:
            raise TooLarge(
                f"item {item} of 'text' is longer than the limit of {self._max_bytes} bytes", field=field
            )
        try:
            return value.decode()
        except UnicodeDecodeError as error:
            raise InvalidInput(f"item {item} of 'text' is not UTF-8", field=field) from error

    def _padded(self, tokens: int) -> int:
        padded = max(1, -(-tokens // PAD_TO_MULTIPLE)) * PAD_TO_MULTIPLE
        return min(padded, self._max_tokens)


def _load_tokenizer(folder: Path, config: TextPreprocessing) -> Tokenizer:
    raw = model_file(folder, config.tokenizer).read_bytes()
    try:
        return Tokenizer.from_buffer(raw)
    except Exception as error:  # what the library raises has no class of its own
        raise ModelUnavailable(f"file {config.tokenizer!r} is not a tokenizer that we can read") from error
