"""Small tars and zips from names and bytes, and what the source in a file holds: what tests of containers share."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import NamedTuple

import numpy as np

from unpoison.sources.folder import open_folder

COMPRESS: dict[str, Callable[[bytes], bytes]] = {
    "gzip": lambda data: gzip.compress(data, mtime=0),
    "bzip2": bz2.compress,
    "xz": lzma.compress,
}
# Nothing here is decoded, so any bytes do for an image.
FILES = {f"{label}/{i}.png": f"{label} number {i}".encode() for label in ("cat", "dog") for i in range(2)}


class Held(NamedTuple):
    """Class and bytes by name, problems by name, ignored names, and notes of a source."""

    samples: dict[str, tuple[str, bytes | str]]
    problems: dict[str, str]
    ignored: list[str]
    notes: list[str]


def held(path: Path) -> Held:
    """What a folder or archive holds, read in full; text in the place of bytes is the reason why there are none."""
    source = open_folder(path)
    rows = {part: np.arange(len(labels)) for part, labels in source.labels.items()}
    samples = {}
    for part, row, content in source.read(rows):
        assert isinstance(content, bytes | str)
        samples[source.names[part][row]] = (source.classes[source.labels[part][row]], content)
    return Held(samples, dict(source.problems), source.ignored, source.notes)


def tar_entry(name: str, kind: bytes = tarfile.REGTYPE, link: str = "", size: int = 0) -> tarfile.TarInfo:
    entry = tarfile.TarInfo(name)
    entry.type, entry.linkname, entry.size = kind, link, size
    return entry


def tar_bytes(
    files: Mapping[str, bytes] = FILES, *extra: tarfile.TarInfo, format: int = tarfile.PAX_FORMAT, end: int = 1024
) -> bytes:
    """A tar of `files` and then `extra` headers without content, closed by `end` zeros and no more padding."""
    parts = []
    for name, content in files.items():
        parts += [tar_entry(name, size=len(content)).tobuf(format, "utf-8", "surrogateescape"), _padded(content)]
    parts += [entry.tobuf(format, "utf-8", "surrogateescape") for entry in extra]
    return b"".join(parts) + bytes(end)


def zip_bytes(files: Mapping[str, bytes] = FILES, method: int = zipfile.ZIP_STORED) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, content in files.items():
            archive.writestr(zipfile.ZipInfo(name), content, method)
    return buffer.getvalue()


def _padded(content: bytes) -> bytes:
    return content + bytes(-len(content) % tarfile.BLOCKSIZE)
