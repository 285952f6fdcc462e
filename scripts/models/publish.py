"""Writes a model into a repository all at once, so that no worker ever reads half of one."""

import filecmp
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import yaml


@contextmanager
def publishing(repository: Path, name: str, version: int = 1) -> Iterator[Path]:
    """Yield an empty folder to fill; on success it becomes `<repository>/<name>/<version>`.

    It is renamed into place, so the name appears whole or not at all. What was there before is replaced,
    and left alone if it is the same. If the block raises, nothing changes.
    """
    target = repository / name / str(version)
    target.parent.mkdir(parents=True, exist_ok=True)
    # A name with a dot is passed over by workers, and a sibling can be renamed without a copy.
    with tempfile.TemporaryDirectory(prefix=".publishing-", dir=target.parent) as workspace:
        fresh = Path(workspace, "fresh")
        fresh.mkdir()
        yield fresh
        if target.exists():
            if _same_files(fresh, target):
                return
            target.rename(Path(workspace, "replaced"))
        fresh.rename(target)


def write_config(folder: Path, config: dict[str, Any]) -> None:
    """Write a `model.yaml`, keys in the given order."""
    (folder / "model.yaml").write_text(yaml.safe_dump(config, sort_keys=False), encoding="utf-8")


def copy_file(source: Path, folder: Path, name: str) -> None:
    """Copy the bytes of `source` and nothing else: no link, no owner, no mode."""
    shutil.copyfile(source, folder / name)


def _same_files(one: Path, other: Path) -> bool:
    names = sorted(path.name for path in one.iterdir())
    if names != sorted(path.name for path in other.iterdir()):
        return False
    _, different, unread = filecmp.cmpfiles(one, other, names, shallow=False)
    return not different and not unread
