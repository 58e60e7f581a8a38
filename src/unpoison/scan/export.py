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
from ..reporting.suspicion import NO_ANSWER
from ..sources.folder import open_folder
from ..sources.source import Source
from ..workflow import present

ANSWER, KEPT, REMOVED = Path("reports/answer.txt"), Path("reports/kept.txt"), Path("reports/removed.txt")
DEFECTS = Path("data/base/defects.txt")

Form = Literal["copy", "link"]


def export(source_path: Path, to: str, form: Form) -> str:
    """Write the scanned set without the removed samples; the source is read and never touched.

    The working directory is the root of the working copy that the scan ran in.

    Args:
        source_path: folder or archive that was scanned.
        to: folder that does not exist yet, or an archive whose name ends in `.zip`.
        form: of a folder: `copy` writes every file anew, `link` makes hard links where the source is a folder on the same disk.

    Returns:
        What was written, in words.

    Raises:
        UserError: the target exists or lies within the data; the last run here was no scan of these data, or one without an answer;
            a name that leads out of the target.
    """
    target = Path(to)
    if not to or os.path.lexists(target):
        raise UserError(
            f"TO: {to!r} given, {'which exists' if to else 'no name'}; allowed: a new folder, or a new file whose name ends in .zip"
        )
    if target.resolve().is_relative_to(source_path.resolve()):
        raise UserError(f"TO: {to!r} given, which lies within the data; allowed: a place outside {str(source_path)!r}")
    _check_scanned(source_path)
    source = open_folder(source_path)
    kept, removed = _names(KEPT), _names(REMOVED)
    unusable = _unusable(
        [name for names in source.names.values() for name in names if name not in kept and name not in removed]
    )
    if strange := sorted((removed | kept) - set(source.names["train"])):
        raise UserError(
            f"{REMOVED.parent}: {strange[0]!r} is no training image of {str(source_path)!r}; allowed: the data as they were scanned"
        )
    if unknown := sorted(set(source.names["train"]) - removed - kept - unusable):
        raise UserError(
            f"DATA: {unknown[0]!r} was not there when the data were scanned; allowed: the data as they were, or another scan"
        )
    left_out, written = removed | unusable, 0
    if target.suffix.lower() == ".zip":
        with new_file(target) as staging, zipfile.ZipFile(staging, "w", zipfile.ZIP_STORED) as archive:
            for name, content in _kept(source, left_out):
                archive.writestr(_inside(name).as_posix(), content)
                written += 1
    else:
        root = source_path if form == "link" and source_path.is_dir() else None
        with new_folder(target) as staging:
            for name, content in _kept(source, left_out):
                _write(staging / _inside(name), content, root and root / name)
                written += 1
    files = f"export: {written:,} files in {target}, {len(removed):,} left out"
    return files + (f", and {len(unusable):,} that cannot be used" if unusable else "")


def _check_scanned(path: Path) -> None:
    """Raises UserError where the lists of the report are not those of a scan of these data that had an answer."""
    if not ANSWER.exists():
        raise UserError(f"{ANSWER}: no such file; allowed: after `make scan DATA=…`")
    answer = ANSWER.read_text(encoding="utf-8")
    if not answer:
        raise UserError(f"{ANSWER}: empty, as the last run here was no scan; allowed: after `make scan DATA=…`")
    if answer.startswith(NO_ANSWER):
        raise UserError(
            f"{ANSWER}: the last scan here has no answer, and so its lists mean nothing; allowed: after one that has"
        )
    scanned = present("data.path")
    if not isinstance(scanned, str) or Path(scanned).resolve() != path.resolve():
        raise UserError(f"DATA: {str(path)!r} given, allowed: the data of the last scan here, {scanned!r}")


def _names(path: Path) -> set[str]:
    """The names that a list of the report holds. A list that somebody edited may end without a line break."""
    if not path.exists():
        raise UserError(f"{path}: no such file; allowed: after `make scan DATA=…`")
    return set(filter(None, path.read_text(encoding="utf-8").split("\n")))


def _unusable(names: list[str]) -> set[str]:
    """Those of the names that `prepare` left out, which a line `NAME: REASON` says of each."""
    lines = DEFECTS.read_text(encoding="utf-8").split("\n") if DEFECTS.exists() else []
    return {name for name in names if any(line.startswith(f"{name}: ") for line in lines)}


def _kept(source: Source, left_out: set[str]) -> Iterator[tuple[str, bytes]]:
    """Name and content of each file that stays."""
    rows = {
        part: np.array([row for row, name in enumerate(names) if name not in left_out], np.int64)
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
