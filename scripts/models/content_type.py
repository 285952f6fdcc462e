"""The `content-type` model: Magika's, from its Python package, says what kind of file some bytes are."""

import json
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from scripts.models.publish import copy_file, publishing, write_config

NAME = "content-type"


def install_content_type_model(repository: Path) -> Path:
    """Write the model into `repository` and return its folder. Doing so again changes nothing.

    Raises FileNotFoundError if the package `magika` (extra `embedded`) is not installed.
    """
    source = _model_folder()
    magika = json.loads((source / "config.min.json").read_text(encoding="utf-8"))
    with publishing(repository, NAME) as folder:
        copy_file(source / "model.onnx", folder, "model.onnx")
        (folder / "labels.txt").write_text("\n".join(_labels(magika)) + "\n", encoding="utf-8")
        write_config(folder, _config(magika))
    return repository / NAME / "1"


def _model_folder() -> Path:
    spec = find_spec("magika")  # not imported: that would load its own copy of the model
    if spec is None or not spec.submodule_search_locations:
        raise FileNotFoundError("the package 'magika' is not installed; it comes with the extra 'embedded'")
    found = sorted(Path(spec.submodule_search_locations[0], "models").glob("*/model.onnx"))
    if len(found) != 1:
        raise FileNotFoundError(f"expected one model in the package 'magika', found {len(found)}")
    return found[0].parent


def _labels(magika: dict[str, Any]) -> list[str]:
    """List the model's classes as Magika names them to its users (random bytes are `unknown`)."""
    renamed: dict[str, str] = magika["overwrite_map"]
    return [renamed.get(label, label) for label in magika["target_labels_space"]]


def _config(magika: dict[str, Any]) -> dict[str, Any]:
    return {
        "format": "onnx",
        "description": "What kind of file some bytes are: one of "
        f"{len(magika['target_labels_space'])} content types (Magika, Apache-2.0).",
        "max_batch_size": 8,  # on a CPU, time grows with every file: a larger batch only waits longer
        "labels": "labels.txt",
        "preprocessing": {
            "name": "file-bytes",
            "head_bytes": magika["beg_size"],
            "tail_bytes": magika["end_size"],
            "block_bytes": magika["block_size"],
            "padding": magika["padding_token"],
        },
        "postprocessing": {"name": "classify", "top_k": 3, "softmax": False},
        "warmup": {"batch_sizes": [1, 8]},
    }
