"""Headers of a tar, one by one: what the standard library takes for the end, or for nothing, is damage here."""

from __future__ import annotations

import re
import tarfile
from typing import BinaryIO, cast

from .names import short
from .streams import Decompressed

BLOCK = tarfile.BLOCKSIZE
_HEADER = 1 << 20
"""Most bytes of the headers of one file: long names and extended headers say themselves how long they are."""
_RECORD = re.compile(rb"(\d{1,7}) ([^=\n]+)=")
# POSIX's own keywords of extended headers; those of vendors have a dot. An unknown one without a dot is a damaged one.
_KEYWORDS = frozenset(
    b"atime charset comment ctime gid gname hdrcharset linkpath mtime path size uid uname devmajor devminor".split()
)
_OF_ONE_FILE = (b"path", b"linkpath", b"size", b"GNU.sparse.")


class TarStream:
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


class TarHeader(tarfile.TarInfo):
    """A header whose extended records are whole."""

    def _proc_pax(self, archive: tarfile.TarFile) -> tarfile.TarInfo:
        # Looked at first and then read again by tarfile, which stops at the first record it does not understand.
        stream = cast(TarStream, archive.fileobj)
        data = stream.read(-(-self.size // BLOCK) * BLOCK)
        following = stream.read(BLOCK)
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


class TarHeaders(tarfile.TarFile):
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
        stream = cast(TarStream, self.fileobj)
        stream.seek(self.offset)
        stream.allow(_HEADER)
        block = stream.read(BLOCK)
        if len(block) == BLOCK and not any(block):
            block = stream.read(BLOCK)
            if len(block) == BLOCK and not any(block):
                self.closed_by_blocks = True
                return None
            raise tarfile.ReadError("cut off: one of the two blocks that close a tar")
        if len(block) < BLOCK:
            raise tarfile.ReadError("cut off: without the two blocks that close a tar")
        stream.unread(block)
        try:
            return self.tarinfo.fromtarfile(self)
        except tarfile.HeaderError as error:
            raise tarfile.ReadError(f"damaged header at byte {self.offset}: {error}") from None
