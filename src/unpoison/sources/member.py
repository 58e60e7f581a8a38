"""What is found in a folder or archive: files, and links that stand for files."""

from __future__ import annotations

from typing import NamedTuple

MAX_FILE_BYTES = 256 << 20
"""A larger file inside a source is reported and not read."""


class Found(NamedTuple):
    """A file or link of a container.

    Attributes:
        name: with `/` between the parts.
        problem: why it cannot be read; "" where it can.
        told: whether the problem counts whatever the name: it may hide a folder, or the name itself is in doubt.
        link: of a link inside an archive: the path it leads to, from the archive's root; "" where it leads out. None of a
            file.
    """

    name: str
    problem: str = ""
    told: bool = False
    link: str | None = None


def size_problem(size: int) -> str:
    """What is wrong with a file of that many bytes; "" where nothing is."""
    if size < 0:
        return "a size below zero"
    return f"oversized: {size >> 20} MiB, at most {MAX_FILE_BYTES >> 20} allowed" if size > MAX_FILE_BYTES else ""
