"""Files in a folder, a tar or a zip archive, behind one pair of functions. Nothing is ever extracted to disk.

Names inside an archive are only compared, never used as paths, so a hostile one (`../x`, `/etc/x`, a link) reaches nothing.
"""

from __future__ import annotations

import stat
from collections.abc import Iterator, Mapping, Set
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

from ..core.errors import ParameterError, UserError
from .folders import walk_folder
from .links import follow
from .member import MAX_FILE_BYTES, Found
from .names import path_shown, short
from .streams import format_of
from .tars import read_tar, walk_tar
from .zips import read_zip, walk_zip

Item = TypeVar("Item")
_MAX_EXPANSION = 1000  # images hardly compress; an archive that grows more than this is a bomb
_FREE_EXPANSION = 256 << 20  # bytes that any archive may expand to: small archives of blank images compress well
_FREE_FILES = 10_000  # files that any archive may hold; past them each takes at least a byte of it


@dataclass
class Contents:
    """What a folder or archive holds.

    Attributes:
        files: names of the files, and of the links inside an archive that stand for one, sorted.
        problems: what cannot be read, sorted by name; of files whose name occurs again there is one.
        links: name of the file that is read for it, by name of each link inside an archive.
        notes: lines on what was passed over.
    """

    files: list[str]
    problems: list[Found] = field(default_factory=list)
    links: dict[str, str] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def list_members(path: Path) -> Contents:
    """Every file of a folder or archive.

    Raises:
        UserError: no such folder or archive; not an archive; damaged, cut off, or expanding beyond all reason.
    """
    notes: list[str] = []
    # None for a file like all others, of which there may be a million.
    found: dict[str, Found | None] = {}
    for item in _damage_named(path, _walk(path, notes)):
        name = item.name
        if name in found:
            # Readers differ in which of two files of one name they take, so neither is taken.
            found[name] = Found(name, "occurs twice in the archive", told=item.told)
        else:
            found[name] = item if item.problem or item.link is not None else None
    to = {name: each.link for name, each in found.items() if each and each.link is not None and not each.problem}
    files = {name: each.problem if each else "" for name, each in found.items() if name not in to} if to else {}
    links, stands_for = follow(to, files)
    problems = [each for each in (*found.values(), *links) if each and each.problem]
    plain = [name for name, each in found.items() if each is None]
    return Contents(sorted(plain + list(stands_for)), sorted(problems), stands_for, notes)


def read_members(
    path: Path, wanted: Set[str], links: Mapping[str, str] | None = None
) -> Iterator[tuple[str, bytes | str]]:
    """Name and bytes of the files in `wanted`, each once, in the container's own order; or text that says why not.

    Args:
        path: the folder or archive.
        wanted: names of files, and of links inside an archive.
        links: name of the file that is read for each of these.
    """
    names: dict[str, list[str]] = {}
    for name in sorted(wanted):
        names.setdefault((links or {}).get(name, name), []).append(name)
    for name, content in _damage_named(path, _read(path, names.keys())):
        for each in names[name]:
            yield each, content


def _damage_named(path: Path, items: Iterator[Item]) -> Iterator[Item]:
    """The items, with the errors of whatever library reads them turned into one for the user."""
    # The count tells how far a damaged archive could be read.
    count = 0
    try:
        for item in items:
            yield item
            count += 1
    except UserError:
        raise
    except FileNotFoundError:
        raise ParameterError(f"path: {path_shown(path)}: no such file or folder") from None
    # Every kind: on damaged bytes the libraries raise whatever their code comes to, and no list of kinds is whole.
    except Exception as error:
        reason = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
        raise ParameterError(
            f"path: {path_shown(path)}: {type(error).__name__} after {count} files ({short(reason)}); allowed: a folder, "
            ".tar, .tar.gz, .tar.xz, .tar.bz2 or .zip that is whole"
        ) from None


def _walk(path: Path, notes: list[str]) -> Iterator[Found]:
    """Every file of a container, in its own order."""
    if _is_folder(path):
        yield from walk_folder(path)
        return
    kind, limit = format_of(path), _Limit(path)
    walk = walk_zip(path, limit.check, notes) if kind == "zip" else walk_tar(path, kind, limit.check, notes)
    for count, found in enumerate(walk):
        if count > max(_FREE_FILES, limit.size):
            limit.refuse()
        yield found


def _read(path: Path, wanted: Set[str]) -> Iterator[tuple[str, bytes | str]]:
    """The files in `wanted`, in the container's own order."""
    if not _is_folder(path):
        kind = format_of(path)
        yield from read_zip(path, wanted) if kind == "zip" else read_tar(path, kind, _Limit(path).check, wanted)
        return
    for name in sorted(wanted):
        try:
            with (path / name).open("rb") as file:
                yield name, file.read(MAX_FILE_BYTES)
        except OSError as error:
            yield name, f"unreadable: {error.strerror}"


def _is_folder(path: Path) -> bool:
    """Whether it is a folder or a file. Raises ParameterError for anything else: a FIFO would wait for a writer for ever."""
    mode = path.stat().st_mode
    if not stat.S_ISDIR(mode) and not stat.S_ISREG(mode):
        raise ParameterError(f"path: {path_shown(path)}: a FIFO, socket or device; allowed: a folder or archive")
    return stat.S_ISDIR(mode)


class _Limit:
    """The most bytes that may come out of an archive of its size."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self.size = path.stat().st_size
        self._most = max(_FREE_EXPANSION, _MAX_EXPANSION * self.size)

    def check(self, total: int) -> None:
        """Raises ParameterError where `total` bytes are too many."""
        if total > self._most:
            self.refuse()

    def refuse(self) -> None:
        raise ParameterError(
            f"path: {path_shown(self._path)}: expands to more than {_MAX_EXPANSION} times its size; not read any further"
        )
