"""The files of a model's folder: found without leaving it, and without following links."""

import os
from pathlib import Path

from schemas.errors import ModelUnavailable


def model_file(folder: Path, name: str) -> Path:
    """Return the regular file `name` below `folder`. Raises ModelUnavailable naming the file.

    Refuses absolute names, `..` and links, so no model can read a file that is not its own.
    """
    parts = Path(name).parts
    if not parts or Path(name).is_absolute() or ".." in parts:
        raise ModelUnavailable(f"file {name!r} must lie in the model's folder")
    path = folder
    for part in parts:
        path /= part
        if path.is_symlink():
            raise ModelUnavailable(f"file {name!r} is a link, or lies behind one")
    if not path.is_file():
        raise ModelUnavailable(f"file {name!r} is missing")
    if path.stat().st_nlink > 1:
        raise ModelUnavailable(f"file {name!r} is a hard link")
    return path


def check_no_links(folder: Path) -> None:
    """Check that `folder` holds only plain folders and files. Raises ModelUnavailable naming what is not.

    Model formats name further files (ONNX external data), which their libraries open without asking us.
    """
    with os.scandir(folder) as found:
        entries = list(found)
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            check_no_links(Path(entry.path))
        elif entry.is_symlink() or not entry.is_file() or entry.stat().st_nlink > 1:
            raise ModelUnavailable(f"file {entry.name!r} is a link or a special file")


def folder_bytes(folder: Path) -> int:
    """Sum the sizes of all files below `folder`."""
    return sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())


def read_lines(folder: Path, name: str) -> tuple[str, ...]:
    """Read a UTF-8 text file beside the model, one value a line. Raises ModelUnavailable naming the file."""
    try:
        text = model_file(folder, name).read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise ModelUnavailable(f"file {name!r} can not be read as UTF-8 text") from error
    return tuple(text.removesuffix("\n").split("\n"))
