"""The scanned set without the samples that `reports/removed.txt` names: a folder of copies or links, or a ZIP archive."""

from __future__ import annotations

import io
import os
import zipfile
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Literal

import numpy as np
from PIL import Image

from ..core.arrays import Images
from ..core.errors import UserError
from ..core.files import new_file, new_folder
from ..sources.folder import open_folder
from ..sources.source import Source

KEPT, REMOVED = Path("reports/kept.txt"), Path("reports/removed.txt")

Form = Literal["copy", "link"]


def export(data: str, to: str, form: Form) -> str:
    """Write the scanned set without the removed samples; the source is read and never touched.

    Args:
        data: folder or archive that was scanned.
        to: folder that does not exist yet, or an archive whose name ends in `.zip`.
        form: of a folder: `copy` writes every file anew, `link` makes hard links where the source is a folder on the same disk.

    Returns:
        What was written, in words.

    Raises:
        UserError: the target exists; no scan was run here, or of other data; a name that leads out of the target.
    """
    target, source_path = Path(to), Path(data)
    if not data or not source_path.exists():
        raise UserError(f"DATA: {data!r} given, which does not exist; allowed: the folder or archive that was scanned")
    if not to or target.exists():
        raise UserError(
            f"TO: {to!r} given, {'which exists' if to else 'no name'}; allowed: a new folder, or a new file whose name ends in .zip"
        )
    if target.absolute().is_relative_to(source_path.absolute()):
        raise UserError(f"TO: {to!r} given, which lies within the data; allowed: a place outside {str(source_path)!r}")
    source, removed = open_folder(source_path), _names(REMOVED)
    known = {name for names in source.names.values() for name in names}
    if strange := sorted((removed | _names(KEPT)) - known):
        raise UserError(
            f"{REMOVED.parent}: {strange[0]!r} is no image of {data!r}; allowed: the data of the last scan here"
        )
    left = sum(len(names) for names in source.names.values()) - len(removed)
    if target.suffix.lower() == ".zip":
        with new_file(target) as staging, zipfile.ZipFile(staging, "w", zipfile.ZIP_STORED) as archive:
            for name, content in _kept(source, removed):
                archive.writestr(_inside(name).as_posix(), content)
    else:
        root = source_path if form == "link" and source_path.is_dir() else None
        with new_folder(target) as staging:
            for name, content in _kept(source, removed):
                _write(staging / _inside(name), content, root and root / name)
    return f"export: {left:,} files in {target}, {len(removed):,} left out"


def _names(path: Path) -> set[str]:
    """The names that a list of the report holds."""
    if not path.exists():
        raise UserError(f"{path}: no such file; allowed: after `make scan DATA=…`")
    return {line.replace("\\n", "\n") for line in path.read_text(encoding="utf-8").split("\n")[:-1]}


def _kept(source: Source, removed: set[str]) -> Iterator[tuple[str, bytes]]:
    """Name and content of each file that stays; files that cannot be read are left out, as `prepare` leaves them out."""
    rows = {
        part: np.array([row for row, name in enumerate(names) if name not in removed], np.int64)
        for part, names in source.names.items()
    }
    for part, row, content in source.read(rows):
        if not isinstance(content, str):
            name = source.names[part][row]
            yield (name, content) if isinstance(content, bytes) else (f"{name}.png", _png(content))


def _inside(name: str) -> PurePosixPath:
    """A file's name below the target. Raises UserError where it would lead out of it."""
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts or not path.parts:
        raise UserError(
            f"{REMOVED.parent}: {name!r} is a file's name that leads elsewhere; allowed: names below the data"
        )
    return path


def _write(path: Path, content: bytes, linked: Path | None) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if linked is not None and linked.is_file():
        try:
            os.link(linked, path)
            return
        except OSError:
            # Another disk, or one without links: a copy has the same content.
            linked = None
    path.write_bytes(content)


def _png(pixels: Images) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels[..., 0] if pixels.shape[2] == 1 else pixels).save(file, "PNG")
    return file.getvalue()
