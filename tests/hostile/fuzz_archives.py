"""Readers of archives, for `make fuzz`: a mutated archive is refused, has a defect, or holds exactly what it held."""

from __future__ import annotations

import bz2
import gzip
import lzma
import re
import tarfile
import zipfile
from pathlib import Path
from typing import Any

from hostile.fuzz import Reader
from small_archives import FILES, Held, held, tar_bytes, tar_entry, zip_bytes

LONG = {f"cat/{'long ' * 30}.png": b"long", "größe/0.png": b"not ASCII"}


def read(data: bytes, folder: Path) -> Held:
    (folder / "set").write_bytes(data)
    return held(folder / "set")


def right(valid: Held, found: Held) -> bool:
    """Whether every sample is one that was there, and each that is gone or different is a defect or ignored by name.

    What a mutation makes of a whole archive may be another whole archive: one file less and so on, as pieces are cut out and
    put in. What must not be is content that no checksum vouches for.
    """
    known = {content for _, content in valid.samples.values()}
    return all(isinstance(content, str) or content in known for _, content in found.samples.values())


def names_right(valid: Held, found: Held) -> bool:
    """For a plain tar, whose content has no checksum, and whose long names have none: it has been read without an error."""
    return all(re.fullmatch(r"[^\x00-\x1f]*", name) for name in (*found.samples, *found.problems, *found.ignored))


def tars() -> list[bytes]:
    links = (
        tar_entry("dog/9.png", tarfile.LNKTYPE, "cat/0.png"),
        tar_entry("dog/8.png", tarfile.SYMTYPE, "../cat/1.png"),
    )
    return [
        tar_bytes(FILES, *links),
        tar_bytes({**FILES, **LONG}),
        tar_bytes({**FILES, **LONG}, format=tarfile.GNU_FORMAT),
        tar_bytes(format=tarfile.USTAR_FORMAT),
    ]


def zips() -> list[bytes]:
    methods = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
    return [zip_bytes(FILES, method) for method in methods] + [zip_bytes({**FILES, **LONG})]


def members(compress: Any) -> list[bytes]:
    """The tar in one member and in three."""
    tar = tar_bytes()
    return [compress(tar), compress(tar[:700]) + compress(tar[700:1024]) + compress(tar[1024:])]


READERS = [
    Reader("archive-tar", tars, read, names_right),
    Reader("archive-zip", zips, read, right),
    Reader("archive-gzip", lambda: members(gzip.compress), read, right),
    Reader("archive-bzip2", lambda: members(bz2.compress), read, right),
    Reader("archive-xz", lambda: members(lzma.compress), read, right),
]
