"""A model repository as a folder: `<name>/<version>/` or `<org>/<name>/<version>/`, each with a `model.yaml`.

A version is a folder of digits, 1 or more. Names that start with a dot are passed over, so a model can be
written beside its place and renamed into it. In `org/name`, `name` must not be all digits, as a version is.
"""

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml
from pydantic import ValidationError

from schemas.errors import InvalidInput, ModelUnavailable, UnknownModel
from schemas.models import CONFIG_FILE, ModelConfig
from schemas.subjects import check_model_name
from workers.files import check_no_links, model_file

MAX_CONFIG_BYTES = 64 * 1024


@dataclass(frozen=True, slots=True)
class FoundModel:
    """One version of one model, its `model.yaml` read and checked, nothing loaded."""

    name: str
    version: int
    folder: Path
    config: ModelConfig


@dataclass(frozen=True, slots=True)
class BrokenModel:
    """A folder that should be a model and can not be served. `where` is relative to the repository."""

    where: str
    reason: str


@dataclass(frozen=True, slots=True)
class Scan:
    """What a repository holds, by name and version; a broken model does not hide the others."""

    models: tuple[FoundModel, ...]
    broken: tuple[BrokenModel, ...]

    def latest(self) -> dict[str, FoundModel]:
        """Map each model's name to its highest version that is not broken."""
        return {found.name: found for found in self.models}


def scan(root: Path) -> Scan:
    """Read every `model.yaml` below `root`. Blocks. Raises ModelUnavailable if `root` is no folder."""
    if not root.is_dir():
        raise ModelUnavailable("the model repository is not a folder, or does not exist")
    models: list[FoundModel] = []
    broken: list[BrokenModel] = []
    for where in sorted(_version_folders(root), key=_name_and_version):
        try:
            models.append(_read_model(root, where))
        except ModelUnavailable as error:
            broken.append(BrokenModel(where, error.message))
    return Scan(tuple(models), tuple(broken))


def find_model(root: Path, name: str, version: int | None = None) -> FoundModel:
    """Read one model, its highest version if none is given. Blocks.

    Raises InvalidInput on a name that is not allowed, UnknownModel if there is no such folder, and
    ModelUnavailable if the folder can not be served.
    """
    folder = root / check_model_name(name)
    versions = sorted(int(v) for v in _folders(folder) if _is_version(v))
    if not versions or version not in (None, *versions):
        what = f"model {name!r}" if version is None else f"version {version} of model {name!r}"
        raise UnknownModel(f"{what} is not in the repository", field="model")
    return _read_model(root, f"{name}/{version or versions[-1]}")


def read_config(folder: Path) -> ModelConfig:
    """Read and check the `model.yaml` in `folder`. Raises ModelUnavailable naming the key."""
    raw = _read_yaml(model_file(folder, CONFIG_FILE))
    try:
        return ModelConfig.model_validate(raw)
    except ValidationError as error:
        reasons = "; ".join(_reason(e) for e in error.errors(include_url=False, include_input=False))
        raise ModelUnavailable(f"{CONFIG_FILE}: {reasons}") from error


def _read_model(root: Path, where: str) -> FoundModel:
    try:
        return _check_model(root, where)
    except OSError as error:  # not ours to read, or replaced while we looked
        raise ModelUnavailable(f"can not be read: {error.strerror}") from error


def _check_model(root: Path, where: str) -> FoundModel:
    name, _, version = where.rpartition("/")
    try:
        check_model_name(name)
    except InvalidInput as error:
        raise ModelUnavailable(f"the model's name {error.message}") from error
    if not _is_version(version):
        raise ModelUnavailable("a model must be in a version folder: digits, 1 or more, no leading zero")
    folder = root
    for part in where.split("/"):
        folder /= part
        if folder.is_symlink():
            raise ModelUnavailable("the model's folder is a link, or lies behind one")
    check_no_links(folder)
    return FoundModel(name, int(version), folder, read_config(folder))


def _read_yaml(path: Path) -> Any:
    if path.stat().st_size > MAX_CONFIG_BYTES:
        raise ModelUnavailable(f"{CONFIG_FILE}: is larger than {MAX_CONFIG_BYTES} bytes")
    try:
        raw = yaml.safe_load(path.read_bytes())
    except yaml.MarkedYAMLError as error:
        line = f" at line {error.problem_mark.line + 1}" if error.problem_mark else ""
        raise ModelUnavailable(f"{CONFIG_FILE}: is not valid YAML{line}: {error.problem}") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise ModelUnavailable(f"{CONFIG_FILE}: is not valid YAML") from error
    if not isinstance(raw, dict):
        raise ModelUnavailable(f"{CONFIG_FILE}: must be a map, with at least the key 'format'")
    return raw


def _reason(error: Any) -> str:
    key = ".".join(str(part) for part in error["loc"])
    if error["type"] == "extra_forbidden":
        known = f"; known are {', '.join(ModelConfig.model_fields)}" if len(error["loc"]) == 1 else ""
        return f"{key}: is not a known key{known}"
    text = error["msg"].removeprefix("Value error, ")
    return f"{key}: {text}" if key else text


def _version_folders(root: Path) -> Iterator[str]:
    """Yield every folder that is, or should have been, a version, relative to `root`."""
    for first in _folders(root):
        if (root / first / CONFIG_FILE).exists():
            yield f"{first}/{CONFIG_FILE}"
        for second in _folders(root / first):
            where = f"{first}/{second}"
            if _looks_like_version(root / where):
                yield where
                continue
            yield from (f"{where}/{third}" for third in _folders(root / where))


def _looks_like_version(folder: Path) -> bool:
    return folder.name.isdecimal() or (folder / CONFIG_FILE).exists()


def _is_version(text: str) -> bool:
    return text.isascii() and text.isdecimal() and not text.startswith("0") and len(text) <= 18


def _folders(folder: Path) -> list[str]:
    try:
        entries = list(folder.iterdir())
    except OSError:  # as with `lost+found`, which is not ours to read, or a model that is gone by now
        return []
    return [entry.name for entry in entries if entry.is_dir() and not entry.name.startswith(".")]


def _name_and_version(where: str) -> tuple[str, int, str]:
    name, _, version = where.rpartition("/")
    return name, int(version) if _is_version(version) else 0, version
