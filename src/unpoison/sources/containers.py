"""Files in a folder, a tar or a zip archive, behind one pair of functions. Nothing is ever extracted to disk.

Names inside an archive are only compared, never used as paths, so a hostile one (`../x`, `/etc/x`, a link) reaches nothing.
"""

from __future__ import annotations

import lzma
import os
import tarfile
import zipfile
import zlib
from collections.abc import Iterator, Set
from pathlib import Path
from typing import TypeVar

from ..core.errors import ParameterError

Item = TypeVar("Item")
MAX_FILE_BYTES = 256 << 20
"""A larger file inside a source is reported and not read."""
_MAX_EXPANSION = 1000  # images hardly compress; an archive that grows more than this is a bomb
_FREE_EXPANSION = 1 << 30  # bytes that any archive may expand to: small archives of blank images compress well
# What the standard library raises on damaged archives; NotImplementedError is zipfile's for a compression it does not know.
_DAMAGE = (tarfile.TarError, zipfile.BadZipFile, lzma.LZMAError, zlib.error, EOFError, OSError, NotImplementedError)


Member = tuple[str, str]
"""A file of a container: its name with `/` between the parts, and the reason why it cannot be read ("" where it can)."""


def list_members(path: Path) -> list[Member]:
    """Every file, sorted by name; a name that occurs again is kept once, as a problem.

    Raises:
        UserError: no such folder or archive; not an archive; damaged; expands beyond all reason.
    """
    # Two files of one name: readers differ in which one they take, so neither is taken.
    problems: dict[str, str] = {}
    for name, problem in _damage_named(path, _walk(path)):
        problems[name] = "occurs twice in the archive" if name in problems else problem
    return sorted(problems.items())


def read_members(path: Path, wanted: Set[str]) -> Iterator[tuple[str, bytes | str]]:
    """Name and bytes of the files in `wanted`, each once, in the container's own order; or text that says why not."""
    yield from _damage_named(path, _read(path, set(wanted)))


def shown(name: str) -> str:
    """A file's name for messages and lists: one line, with undecodable bytes as escapes."""
    if name.isprintable():
        return name
    text = name.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)


def _damage_named(path: Path, items: Iterator[Item]) -> Iterator[Item]:
    """The items, with the standard library's errors turned into one for the user."""
    # The count tells how far a damaged archive could be read.
    count = 0
    try:
        for item in items:
            yield item
            count += 1
    except FileNotFoundError:
        raise ParameterError(f"path: {path}: no such file or folder") from None
    except _DAMAGE as error:
        raise ParameterError(
            f"path: {path}: {type(error).__name__} after {count} files ({error}); allowed: a folder, .tar, "
            ".tar.gz, .tar.xz, .tar.bz2 or .zip that is whole"
        ) from None


def _walk(path: Path) -> Iterator[Member]:
    """Every file of a container, in its own order."""
    if path.is_dir():
        yield from _walk_folder(path, path, frozenset())
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            # By the sizes that the directory claims, so a bomb is refused before anything of it is expanded.
            total = 0
            for entry in archive.infolist():
                total += entry.file_size
                _check_expansion(path, total)
                if not entry.is_dir():
                    yield _zip_name(entry), _zip_problem(entry)
    else:
        # As a stream, read once from front to back: a compressed tar has no other order.
        with tarfile.open(path, "r|*") as stream:
            total = 0
            for info in _tar_members(stream):
                total += info.size
                _check_expansion(path, total)
                if not info.isdir():
                    yield _normal(info.name), _tar_problem(info)


def _read(path: Path, wanted: set[str]) -> Iterator[tuple[str, bytes | str]]:
    """The files in `wanted`; names are taken out of it as their files are read."""
    if path.is_dir():
        for name in sorted(wanted):
            try:
                yield name, (path / name).read_bytes()
            except OSError as error:
                yield name, f"unreadable: {error.strerror}"
    elif zipfile.is_zipfile(path):
        with zipfile.ZipFile(path) as archive:
            for entry in archive.infolist():
                if (name := _zip_name(entry)) in wanted and not entry.is_dir():
                    wanted.discard(name)
                    try:
                        with archive.open(entry) as file:
                            # At most the size allowed, whatever size the directory claims.
                            yield name, file.read(MAX_FILE_BYTES)
                    except (zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, NotImplementedError) as error:
                        yield name, f"unreadable: {error}"
    else:
        with tarfile.open(path, "r|*") as stream:
            for info in _tar_members(stream):
                if (name := _normal(info.name)) in wanted and (content := stream.extractfile(info)) is not None:
                    wanted.discard(name)
                    yield name, content.read()


def _walk_folder(root: Path, folder: Path, above: frozenset[Path]) -> Iterator[Member]:
    """Every file below `folder`, named from `root`; `above` are the real folders that are being walked."""
    real = folder.resolve()
    if real in above:
        return  # a link back to a folder that is being walked
    # Sorted, as file systems list in any order; linked folders are followed, as links are how large sets are shared.
    with os.scandir(folder) as entries:
        for entry in sorted(entries, key=lambda item: item.name):
            if entry.is_dir():
                yield from _walk_folder(root, folder / entry.name, above | {real})
                continue
            name = (folder / entry.name).relative_to(root).as_posix()
            if not entry.is_file():
                yield name, "neither a file nor a link to one"
            elif (size := entry.stat().st_size) > MAX_FILE_BYTES:
                yield name, _too_large(size)
            else:
                yield name, ""


def _tar_members(stream: tarfile.TarFile) -> Iterator[tarfile.TarInfo]:
    """Headers one by one, none of them kept."""
    while (info := stream.next()) is not None:
        yield info
        # tarfile keeps every header it has read: a kilobyte for each of a million images.
        stream.members = []  # type: ignore[attr-defined]


def _tar_problem(info: tarfile.TarInfo) -> str:
    if not info.isreg():
        return "a link or device in the archive, not a file"
    return _too_large(info.size) if info.size > MAX_FILE_BYTES else _path_problem(info.name)


def _zip_problem(entry: zipfile.ZipInfo) -> str:
    if entry.flag_bits & 1:
        return "encrypted"
    if entry.file_size > MAX_FILE_BYTES:
        return _too_large(entry.file_size)
    return _path_problem(entry.filename.replace("\\", "/"))


def _path_problem(name: str) -> str:
    return "a path that leads out of the archive" if name.startswith("/") or ".." in name.split("/") else ""


def _too_large(size: int) -> str:
    return f"oversized: {size >> 20} MiB, at most {MAX_FILE_BYTES >> 20} allowed"


def _check_expansion(path: Path, total: int) -> None:
    """Raises ParameterError where `total` bytes come out of an archive too small for them."""
    if total > max(_FREE_EXPANSION, _MAX_EXPANSION * path.stat().st_size):
        raise ParameterError(
            f"path: {path}: expands to more than {_MAX_EXPANSION} times its size; not read any further"
        )


def _zip_name(entry: zipfile.ZipInfo) -> str:
    """An entry's name with `/` between the parts, where some Windows programs write backslashes."""
    return _normal(entry.filename.replace("\\", "/"))


def _normal(name: str) -> str:
    """A name without empty parts and `.`: `./a//b` is `a/b`."""
    return "/".join(part for part in name.split("/") if part not in ("", "."))
