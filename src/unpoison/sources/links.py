"""Links inside an archive: read as the file they stand for, as a folder's links are."""

from __future__ import annotations

from collections.abc import Mapping

from .member import Found
from .names import hides, short

_STEPS = 40  # links on the way to a file, as many as Linux follows
_LONGEST = 4096  # letters of a path, likewise
NO_FILE = "a link or device that stands for no file of the archive"


def follow(links: Mapping[str, str], problems: Mapping[str, str]) -> tuple[list[Found], dict[str, str]]:
    """What becomes of the links of an archive.

    Args:
        links: path that each link leads to, by the link's name; "" where that is out of the archive.
        problems: why it cannot be read, by name of each file of the archive; "" where it can.

    Returns:
        The links, as files or as problems, and the name of the file that each of the first kind stands for.
    """
    found: list[Found] = []
    stands_for: dict[str, str] = {}
    folders = _folders(problems) if links else set()
    for name in links:
        target, is_hidden = _target(name, links), hides(name)
        if target is not None and target in problems:
            problem = problems[target] and f"a link to {short(target)}, which is unusable: {problems[target]}"
            found.append(Found(name, problem))
            if not problem:
                stands_for[name] = target
        elif target is not None and target in folders:
            # Each folder is read once, at the place it really has. A link back to where it lies leads in a circle.
            if target and not name.startswith(f"{target}/"):
                found.append(Found(name, again(target), told=not is_hidden))
        else:
            # Without a dot it may be the name of a class, which would be gone without a word.
            found.append(Found(name, NO_FILE, told="." not in name.rpartition("/")[2] and not is_hidden))
    return found, stands_for


def again(place: str) -> str:
    """The problem of a folder that is found a second time."""
    return f"a link to a folder that is read already, as {short(place)}"


def _target(name: str, links: Mapping[str, str]) -> str | None:
    """The real path behind a link; None where it leads out of the archive or in a circle."""
    done: list[str] = []
    left = [name]
    steps = 0
    while left:
        part = left.pop()
        if part == "..":
            if not done:
                return None
            done.pop()
        elif part not in ("", "."):
            done.append(part)
            if (target := links.get("/".join(done))) is not None:
                steps += 1
                if not target or steps > _STEPS or len(target) > _LONGEST:
                    return None
                # A link leads to a path from the root, whose own parts may be links again.
                done, left = [], left + target.split("/")[::-1]
    return "/".join(done)


def _folders(names: Mapping[str, str]) -> set[str]:
    """Every folder that one of the names lies in; the root is ""."""
    folders = {""}
    for name in names:
        while (name := name.rpartition("/")[0]) not in folders:
            folders.add(name)
    return folders
