"""Files of a tar archive, plain or compressed, read as a stream."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Callable, Iterator, Set
from pathlib import Path
from typing import Any, BinaryIO, cast

from .member import Found, size_problem
from .names import normal, path_problem, short
from .streams import Decompressed, Format, is_header
from .tar_headers import BLOCK, TarHeader, TarHeaders, TarStream

# GNU tar's own: a name for the whole, the second half of a file, the list of a folder.
_LABEL, _VOLUME, _DUMP = b"V", b"M", b"D"


def walk_tar(path: Path, kind: Format, check: Callable[[int], None], notes: list[str]) -> Iterator[Found]:
    """Every file and link of a tar, in its own order.

    Args:
        path: the archive.
        kind: `tar`, or how it is compressed.
        check: called with the bytes that files claim so far; raises where they are too many.
        notes: receives a line on what lies behind the end of the archive.
    """
    with _Opened(path, kind, check) as (archive, stream):
        total = 0
        for info in _headers(archive):
            total += info.size
            check(total)
            name = normal(info.name)
            if info.isreg():
                problem = path_problem(info.name) or size_problem(info.size) or _sparse_problem(archive, info)
                yield Found(name, problem)
            elif info.islnk():
                yield Found(name, path_problem(info.name), link=info.linkname)
            elif info.issym():
                # From the link's own folder, unless it leads out in any case.
                target = "" if info.linkname.startswith("/") else f"{name.rpartition('/')[0]}/{info.linkname}"
                yield Found(name, path_problem(info.name), link=target)
            elif info.type == _VOLUME:
                raise tarfile.ReadError("one of several volumes; allowed: one archive, joined before")
            elif not info.isdir() and info.type not in (_LABEL, _DUMP):
                yield Found(name, "a link or device that stands for no file of the archive")
        _check_end(stream, notes)


def read_tar(path: Path, kind: Format, check: Callable[[int], None], wanted: Set[str]) -> Iterator[tuple[str, bytes]]:
    """The files in `wanted`, each once, in the archive's own order."""
    missing = set(wanted)
    with _Opened(path, kind, check) as (archive, stream):
        for info in _headers(archive):
            if not info.isreg() or (name := normal(info.name)) not in missing:
                continue
            stream.allow(info.size)
            if info.sparse is None:
                stream.seek(info.offset_data)
                content = stream.read(info.size)
            else:
                content = cast(Any, archive.extractfile(info)).read()
            if len(content) < info.size:
                raise tarfile.ReadError(f"cut off within {short(name)}")
            yield name, content
            missing.discard(name)
            if not missing:
                return


class _Opened:
    """An archive and its stream, for a `with` block."""

    def __init__(self, path: Path, kind: Format, check: Callable[[int], None]) -> None:
        self._path, self._kind, self._check = path, kind, check

    def __enter__(self) -> tuple[TarHeaders, TarStream]:
        self._file = self._path.open("rb", buffering=1 << 16)
        try:
            raw = None if self._kind == "tar" else Decompressed(self._file, self._kind, self._check)
            stream = TarStream(self._file if raw is None else cast(BinaryIO, io.BufferedReader(raw, 1 << 18)), raw)
            # Names as Python has those of a folder, whatever the locale.
            archive = TarHeaders(
                fileobj=cast(Any, stream), tarinfo=TarHeader, encoding="utf-8", errors="surrogateescape"
            )
        except BaseException:
            self._file.close()
            raise
        return archive, stream

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _headers(archive: TarHeaders) -> Iterator[tarfile.TarInfo]:
    """Headers one by one, none of them kept."""
    while (info := archive.next()) is not None:
        yield info


def _sparse_problem(archive: TarHeaders, info: tarfile.TarInfo) -> str:
    """What is wrong with the list of a sparse file's pieces, which has no checksum: they are ascending and all there."""
    pieces = cast("list[tuple[int, int]] | None", info.sparse)
    end = stored = 0
    for start, size in pieces or ():
        if not size:
            continue  # a place for a piece that GNU tar has not used
        if start < end or size < 0 or start + size > info.size:
            return "a damaged list of a sparse file's pieces"
        end, stored = start + size, stored + size
    if pieces is not None and -(-stored // BLOCK) * BLOCK != archive.offset - info.offset_data:
        return "a damaged list of a sparse file's pieces"
    return ""


def _check_end(stream: TarStream, notes: list[str]) -> None:
    """Read on to the end of the file, where compressed data have their last checksum, and see what is there."""
    behind = 0
    while True:
        stream.allow(1 << 20)
        if not (piece := stream.read(1 << 20)):
            break
        rest = piece.lstrip(b"\0")
        if rest and not behind:
            # Blocks of zeros are padding. A header is another archive, of which tar itself would say nothing.
            start = (len(piece) - len(rest)) // BLOCK * BLOCK
            if is_header(piece[start : start + BLOCK]):
                raise tarfile.ReadError("another tar follows behind the first; allowed: one (tar -A joins them)")
        behind += len(piece) if behind else len(rest)
    behind += stream.raw.behind if stream.raw else 0
    if behind:
        notes.append(f"{behind} bytes behind the end of the archive, ignored")
