"""Archive formats by what is in them, and compressed files of one or several members as one stream."""

from __future__ import annotations

import bz2
import io
import lzma
import os
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import BinaryIO, Literal, Protocol

Format = Literal["zip", "tar", "gzip", "bzip2", "xz"]
MEMORY = 256 << 20
"""Most memory that a decoder of xz may take: `xz -9` needs 65 MiB, a header can ask for 4 GiB."""
_PIECE = 1 << 16
_MAGIC: dict[bytes, Format] = {
    b"\x1f\x8b\x08": "gzip",
    b"BZh": "bzip2",
    b"\xfd7zXZ\x00": "xz",
    b"PK\x03\x04": "zip",
    b"PK\x05\x06": "zip",
    b"PK\x07\x08": "zip",
    b"PK00PK": "zip",
}
# What people bring and what is not read, so that the message can say so.
_OTHERS = {
    b"7z\xbc\xaf\x27\x1c": "a 7z archive",
    b"Rar!": "a RAR archive",
    b"\x28\xb5\x2f\xfd": "Zstandard",
    b"\x04\x22\x4d\x18": "LZ4",
    b"LZIP": "lzip",
    b"\x1f\x9d": "compress (.Z)",
    b"\x1f\xa0": "compress (.Z)",
    b"\x5d\x00\x00": "lzma without xz's checks",
}


def format_of(path: Path) -> Format:
    """The format of an archive, by its first bytes. Raises tarfile.ReadError where it is none that is read."""
    with path.open("rb") as file:
        head = file.read(tarfile.BLOCKSIZE)
    # A tar first: its first file may be called like another format's mark, and its last one may be a zip.
    if is_header(head):
        return "tar"
    for magic, name in _MAGIC.items():
        if head.startswith(magic):
            return name
    if head[257:262] == b"ustar":
        return "tar"  # and damaged
    for magic, other in _OTHERS.items():
        if head.startswith(magic):
            raise tarfile.ReadError(f"{other}, which is not read")
    # Its directory is at the end, so a zip may begin with anything, a program that unpacks it for one.
    if zipfile.is_zipfile(path):
        return "zip"
    raise tarfile.ReadError("empty" if not head else "neither a tar, compressed or not, nor a zip")


def is_header(block: bytes) -> bool:
    """Whether a tar may begin with this block: a header with its checksum, or zeros."""
    try:
        tarfile.TarInfo.frombuf(block, "utf-8", "surrogateescape")
    except tarfile.HeaderError:
        return len(block) == tarfile.BLOCKSIZE and not any(block)
    return True


class _Decoder(Protocol):
    """What the decoders of bz2 and lzma have in common."""

    @property
    def eof(self) -> bool: ...
    @property
    def needs_input(self) -> bool: ...
    @property
    def unused_data(self) -> bytes: ...
    def decompress(self, data: bytes, max_length: int) -> bytes: ...


class _Gzip:
    """zlib's decoder of one gzip member, which compares CRC and length, in the form of the other two."""

    def __init__(self) -> None:
        self._member = zlib.decompressobj(wbits=31)

    @property
    def eof(self) -> bool:
        return self._member.eof

    @property
    def needs_input(self) -> bool:
        return not self._member.unconsumed_tail

    @property
    def unused_data(self) -> bytes:
        return self._member.unused_data

    def decompress(self, data: bytes, max_length: int) -> bytes:
        return self._member.decompress(self._member.unconsumed_tail + data, max_length)


_DECODERS: dict[str, tuple[bytes, Callable[[], _Decoder]]] = {
    "gzip": (b"\x1f\x8b\x08", _Gzip),
    "bzip2": (b"BZh", bz2.BZ2Decompressor),
    "xz": (b"\xfd7zXZ\x00", lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MEMORY)),
}


class Decompressed(io.RawIOBase):
    """What a gzip, bzip2 or xz file holds: all its members one after the other, each compared with its checksum.

    Zeros between and behind members are padding. Anything else behind the last one ends the stream.

    Attributes:
        behind: number of bytes that ended the stream, known once it has ended.
    """

    def __init__(self, file: BinaryIO, name: Format, check: Callable[[int], None]) -> None:
        """`check` is called with the number of bytes given out so far, and raises where they are too many."""
        super().__init__()
        self._file, self._name, self._check = file, name, check
        self._magic, self._make = _DECODERS[name]
        self._decoder: _Decoder | None = self._make()
        self._given = 0
        self._rest = b""  # read and not yet taken by a decoder
        self.behind = 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]
        piece = self._piece(len(buffer))
        buffer[: len(piece)] = piece
        self._given += len(piece)
        self._check(self._given)
        return len(piece)

    def _piece(self, size: int) -> bytes:
        """The next bytes, at most `size`; none at the end."""
        while self._decoder is not None:
            if self._decoder.eof:
                self._next_member()
                continue
            data = b""
            if self._decoder.needs_input:
                data, self._rest = self._rest or self._file.read(_PIECE), b""
            piece = self._decoder.decompress(data, size)
            if piece:
                return piece
            if not data and not self._decoder.eof and self._decoder.needs_input:
                raise EOFError(f"cut off: the file ends within its {self._name} data")
        return b""

    def _next_member(self) -> None:
        """The decoder of the member that follows, or none where the stream is at its end."""
        assert self._decoder is not None
        rest = self._decoder.unused_data.lstrip(b"\0")
        while len(rest) < len(self._magic) and (more := self._file.read(_PIECE)):
            rest = (rest + more).lstrip(b"\0")
        self._decoder = None
        if rest.startswith(self._magic):
            self._decoder, self._rest = self._make(), rest
        elif rest:
            self.behind = os.fstat(self._file.fileno()).st_size - self._file.tell() + len(rest)
