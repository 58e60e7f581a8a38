"""Names of files inside a source: as they are compared, as they are shown, and which of them no user put there."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

SHORT = 160
"""Most letters of a name or reason in a message; lists have them whole."""
# What file servers and desktops leave behind, in lower case: their thumbnails and wastebaskets hold images too.
_SYNOLOGY_QNAP = ("@eadir", "@tmp", "@__thumb", "@recycle", "@sharebin", "@recently-snapshot", "#recycle", "#snapshot")
_WINDOWS = ("$recycle.bin", "$extend", "recycler", "recycled", "system volume information", "thumbs.db", "desktop.ini")
_OTHERS = ("__macosx", "network trash folder", "temporary items", "lost+found", "found.000", "~snapshot")
SYSTEM = frozenset((*_SYNOLOGY_QNAP, *_WINDOWS, *_OTHERS))


def shown(name: str) -> str:
    r"""A file's name for messages and lists: one line, different for different names.

    Undecodable bytes and what is not printable become escapes, and a backslash becomes two: the byte `\xff` is shown in four
    letters, a name of these four letters in five.
    """
    if name.isprintable() and "\\" not in name:
        return name
    return "".join(map(_letter, name))


def short(name: str) -> str:
    """A name as shown, cut in the middle where it is too long for a message."""
    return cut(shown(name[:SHORT] + name[-SHORT:] if len(name) > 2 * SHORT else name))


def cut(text: str, most: int = SHORT) -> str:
    """Text for a message, cut in the middle where it is too long."""
    return text if len(text) <= most else f"{text[: most // 2]}…{text[-most // 2 :]}"


def path_shown(path: Path) -> str:
    """A user's own path for a message: longer than a name inside it may be."""
    return cut(shown(str(path)), 1000)


def listed(names: Iterable[str]) -> str:
    """The first few of some names, as they are shown, for a message, and how many more there are."""
    texts = sorted(names)
    more = f" and {len(texts) - 5} more" if len(texts) > 5 else ""
    return ", ".join(map(cut, texts[:5])) + more


def normal(name: str) -> str:
    """A name without empty parts and `.`: `./a//b` is `a/b`."""
    return "/".join(part for part in name.split("/") if part not in ("", "."))


def path_problem(name: str) -> str:
    """What is wrong with a file's name inside an archive; "" where nothing is."""
    if name.startswith("/") or ".." in name.split("/"):
        return "a path that leads out of the archive"
    if "\0" in name:
        return "a name with a NUL character"
    return "" if normal(name) else "a file without a name"


def hides(name: str) -> bool:
    """Whether a file, or a folder it lies in, hides or belongs to the system; `..` does not hide, it leads out."""
    return any((part.startswith(".") and part != "..") or part.lower() in SYSTEM for part in name.split("/"))


def _letter(letter: str) -> str:
    if "\udc80" <= letter <= "\udcff":
        return f"\\x{ord(letter) - 0xDC00:02x}"
    return letter if letter.isprintable() and letter != "\\" else repr(letter)[1:-1]
