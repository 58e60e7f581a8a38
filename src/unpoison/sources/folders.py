"""Files of a folder, links followed, each real folder once."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

from .links import again
from .member import Found, size_problem
from .names import hides


def walk_folder(root: Path) -> Iterator[Found]:
    """Every file below `root`, named from there.

    Links to folders are followed, as links are how large sets are shared. A folder that is reached by several is read once:
    at its real place where that is below `root`, and otherwise by the first link in order of name. The other links are
    problems; those that lead back to a folder around them are passed over.
    """
    seen: dict[str, str] = {}
    links: list[tuple[str, str]] = []  # name and real place, in order
    hidden: list[tuple[str, str]] = []
    waiting = [("", os.path.realpath(root))]
    # Real places first, so that no link takes the name of a class away from its folder; what hides comes last.
    while waiting or links or hidden:
        if not waiting:
            if links:
                links.sort(reverse=True)
                waiting.append(links.pop())
            else:
                waiting.append(hidden.pop())
        name, real = waiting.pop()
        if real in seen:
            # A link back to a folder around it, by whatever way, hides nothing.
            if seen[real] and not name.startswith(f"{seen[real]}/") and not hides(name):
                yield Found(name, again(seen[real]), told=True)
            continue
        seen[real] = name
        try:
            # By its real place: a path through many links may be longer than a system takes.
            with os.scandir(real) as entries:
                items = sorted(entries, key=lambda item: item.name)
        except OSError as error:
            yield Found(name or ".", f"a folder that cannot be read: {error.strerror}", told=not hides(name))
            continue
        for item in items:
            below = f"{name}/{item.name}" if name else item.name
            if not _is_folder(item):
                yield _file(below, item)
            elif not item.is_symlink():
                (hidden if hides(item.name) else waiting).append((below, f"{real.rstrip('/')}/{item.name}"))
            elif not f"{real}/".startswith(f"{(target := os.path.realpath(item.path)).rstrip('/')}/"):
                links.append((below, target))


def _is_folder(item: os.DirEntry[str]) -> bool:
    try:
        return item.is_dir()
    except OSError:
        return False  # a link in a circle, or one that may not be followed


def _file(name: str, item: os.DirEntry[str]) -> Found:
    """A file, or what is in a file's place; it is not opened, as a FIFO would wait for a writer for ever."""
    try:
        if not item.is_file():
            # Without a dot it may have been the folder of a class, which would be gone without a word.
            lost = item.is_symlink() and "." not in item.name and not hides(name)
            return Found(name, "neither a file nor a link to one", told=lost)
        return Found(name, size_problem(item.stat().st_size))
    except OSError as error:
        return Found(name, f"unreadable: {error.strerror}", told="." not in item.name and not hides(name))
