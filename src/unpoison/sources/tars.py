"""Tar archives, read strictly as a stream: what the standard library takes for the end, or for nothing, is damage here."""

from __future__ import annotations

import io
import re
import tarfile
from collections.abc import Callable, Iterator, Set
from pathlib import Path
from typing import Any, BinaryIO, cast

from .member import Found, size_problem
from .names import normal, path_problem, short
from .streams import Decompressed, Format

_BLOCK = tarfile.BLOCKSIZE
_HEADER = 1 << 20
"""Most bytes of the headers of one file: long names and extended headers say themselves how long they are."""
_RECORD = re.compile(rb"(\d{1,7}) ([^=\n]+)=")
# POSIX's own keywords of extended headers; those of vendors have a dot. An unknown one without a dot is a damaged one.
_KEYWORDS = frozenset(
    b"atime charset comment ctime gid gname hdrcharset linkpath mtime path size uid uname devmajor devminor".split()
)
_OF_ONE_FILE = (b"path", b"linkpath", b"size", b"GNU.sparse.")
_LABEL, _VOLUME, _DUMP = (
    b"V",
    b"M",
    b"D",
)  # GNU tar's own: a name for the whole, a file's second half, a list of a folder


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


class _Stream:
    """A file read forwards, a limited number of bytes at a time; the one interface that `tarfile` needs."""

    def __init__(self, file: BinaryIO, raw: Decompressed | None) -> None:
        self.raw = raw
        self._file = file
        self._position = 0
        self._back = b""
        self._left = 0

    def allow(self, size: int) -> None:
        """Let the next reads take `size` bytes together: a header must not decide how much memory is taken."""
        self._left = size

    def tell(self) -> int:
        return self._position

    def read(self, size: int) -> bytes:
        if not 0 <= size <= self._left:
            raise tarfile.ReadError(f"a header of more than {_HEADER >> 10} KiB")
        data, self._back = self._back[:size], self._back[size:]
        if len(data) < size:
            data += self._file.read(size - len(data))
        self._position += len(data)
        self._left -= len(data)
        return data

    def unread(self, data: bytes) -> None:
        """Put what was read last back in front."""
        self._back = data + self._back
        self._position -= len(data)
        self._left += len(data)

    def seek(self, position: int) -> None:
        if position < self._position:
            raise tarfile.StreamError("a header that leads backwards")
        if self.raw is None:
            self._file.seek(position)
            self._back = b""
        else:
            skip = position - self._position
            self._back, skip = self._back[skip:], max(0, skip - len(self._back))
            while skip and (data := self._file.read(min(skip, 1 << 20))):
                skip -= len(data)
        self._position = position


class _Header(tarfile.TarInfo):
    """A header whose extended records are whole."""

    def _proc_pax(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        # Looked at first and then read again by tarfile, which stops at the first record it does not understand.
        stream = cast(_Stream, archive.fileobj)
        data = stream.read(-(-self.size // _BLOCK) * _BLOCK)
        following = stream.read(_BLOCK)
        is_global = self.type == tarfile.XGLTYPE
        _check_records(data[: self.size], following, is_global=is_global)
        stream.unread(data + following)
        info: tarfile.TarInfo = super()._proc_pax(archive)  # type: ignore[misc]
        if is_global:
            # They are copied for every file; none that is left says anything about pixels.
            archive.pax_headers = {}
        return info


def _check_records(data: bytes, following: bytes, *, is_global: bool) -> None:
    """Raises tarfile.ReadError where extended records do not fill their header, or contradict the header that follows."""
    position, is_text = 0, b"hdrcharset=BINARY\n" not in data
    while position < len(data):
        match = _RECORD.match(data, position)
        end = position + int(match[1]) if match else 0
        if match is None or not match.end() < end <= len(data) or data[end - 1 : end] != b"\n":
            raise tarfile.ReadError("a damaged extended header")
        keyword, value = match[2], data[match.end() : end - 1]
        if (b"." not in keyword and keyword not in _KEYWORDS) or (keyword == b"size" and not value.isdigit()):
            raise tarfile.ReadError(f"a damaged extended header ({short(keyword.decode('ascii', 'replace'))})")
        if is_global and keyword.startswith(_OF_ONE_FILE):
            raise tarfile.ReadError("a header that gives every file the same name or size")
        if keyword == b"path" and is_text and not _agrees(following, value):
            raise tarfile.ReadError(
                f"a damaged extended header (path {short(value.decode('utf-8', 'surrogateescape'))})"
            )
        position = end


def _agrees(header: bytes, path: bytes) -> bool:
    """Whether a file's path may be the one that its plain header, which has a checksum, holds as far as it can."""
    name, prefix = (field.split(b"\0")[0] for field in (header[:100], header[345:500]))
    plain = prefix + b"/" + name if prefix else name
    try:
        text, stand_in = path.decode(), plain.decode("utf-8", "replace")
    except UnicodeDecodeError:
        return plain == path
    # Writers shorten what is too long, and put a question mark for a letter that is not ASCII.
    return len(text) != len(stand_in) or all(letter in ("?", own) for letter, own in zip(stand_in, text, strict=True))


class _Archive(tarfile.TarFile):
    """A tar that is whole only with its two closing blocks."""

    firstmember: tarfile.TarInfo | None
    closed_by_blocks = False

    def next(self) -> tarfile.TarInfo | None:
        first = self.firstmember
        if first is not None:
            self.firstmember = None
            return first
        if self.closed_by_blocks:
            return None
        stream = cast(_Stream, self.fileobj)
        stream.seek(self.offset)
        stream.allow(_HEADER)
        block = stream.read(_BLOCK)
        if len(block) == _BLOCK and not any(block):
            block = stream.read(_BLOCK)
            if len(block) == _BLOCK and not any(block):
                self.closed_by_blocks = True
                return None
            raise tarfile.ReadError("cut off: one of the two blocks that close a tar")
        if len(block) < _BLOCK:
            raise tarfile.ReadError("cut off: without the two blocks that close a tar")
        stream.unread(block)
        try:
            return self.tarinfo.fromtarfile(self)
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"damaged header at byte {self.offset}: {error}") from None


class _Opened:
    """An archive and its stream, for a `with` block."""

    def __init__(self, path: Path, kind: Format, check: Callable[[int], None]) -> None:
        self._path, self._kind, self._check = path, kind, check

    def __enter__(self) -> tuple[_Archive, _Stream]:
        self._file = self._path.open("rb", buffering=1 << 16)
        try:
            raw = None if self._kind == "tar" else Decompressed(self._file, self._kind, self._check)
            stream = _Stream(self._file if raw is None else cast(BinaryIO, io.BufferedReader(raw, 1 << 18)), raw)
            # Names as Python has those of a folder, whatever the locale.
            archive = _Archive(fileobj=cast(Any, stream), tarinfo=_Header, encoding="utf-8", errors="surrogateescape")
        except BaseException:
            self._file.close()
            raise
        return archive, stream

    def __exit__(self, *_: object) -> None:
        self._file.close()


def _headers(archive: _Archive) -> Iterator[tarfile.TarInfo]:
    """Headers one by one, none of them kept."""
    while (info := archive.next()) is not None:
        yield info


def _sparse_problem(archive: _Archive, info: tarfile.TarInfo) -> str:
    """What is wrong with the list of a sparse file's pieces, which has no checksum: they are ascending and all there."""
    pieces = cast("list[tuple[int, int]] | None", info.sparse)
    end = stored = 0
    for start, size in pieces or ():
        if start < end or size < 0 or start + size > info.size:
            return "a damaged list of a sparse file's pieces"
        end, stored = start + size, stored + size
    if pieces is not None and -(-stored // _BLOCK) * _BLOCK != archive.offset - info.offset_data:
        return "a damaged list of a sparse file's pieces"
    return ""


def _check_end(stream: _Stream, notes: list[str]) -> None:
    """Read on to the end of the file, where compressed data have their last checksum, and see what is there."""
    behind = 0
    while True:
        stream.allow(1 << 20)
        if not (piece := stream.read(1 << 20)):
            break
        rest = piece.lstrip(b"\0")
        if rest and not behind:
            # Blocks of zeros are padding. A header is another archive, of which tar itself would say nothing.
            start = (len(piece) - len(rest)) // _BLOCK * _BLOCK
            try:
                tarfile.TarInfo.frombuf(piece[start : start + _BLOCK], "utf-8", "surrogateescape")
            except tarfile.HeaderError:
                pass
            else:
                raise tarfile.ReadError("another tar follows behind the first; allowed: one (tar -A joins them)")
        behind += len(piece) if behind else len(rest)
    behind += stream.raw.behind if stream.raw else 0
    if behind:
        notes.append(f"{behind} bytes behind the end of the archive, ignored")
