"""Zip archives, whose directory is compared with the header in front of each file before it is believed."""

from __future__ import annotations

import os
import stat
import struct
import zipfile
import zlib
from collections.abc import Callable, Iterator, Set
from pathlib import Path
from typing import BinaryIO

from .member import MAX_FILE_BYTES, Found, size_problem
from .names import normal, path_problem
from .streams import MEMORY

_ENCRYPTED, _SIZES_BEHIND, _UTF8 = 1, 8, 0x800  # of the flags
_UNIX = 3
_UNICODE_PATH = 0x7075
_METHODS = {9: "Deflate64", 93: "Zstandard", 95: "xz", 96: "JPEG", 97: "WavPack", 98: "PPMd", 99: "AES"}
_READ = (zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED, zipfile.ZIP_BZIP2, zipfile.ZIP_LZMA)
_LINK_BYTES = 4096
_HEADER = struct.Struct("<4s5H3L2H")
_END = struct.Struct("<4s4H2LH")
_LOCATOR = struct.Struct("<4sLQL")
_END64 = struct.Struct("<4sQ2H2L4Q")
DAMAGED = "damaged: the archive's directory says otherwise than the file's own header"


def walk_zip(path: Path, check: Callable[[int], None], notes: list[str]) -> Iterator[Found]:
    """Every file and link of a zip, in the directory's order.

    Args:
        path: the archive.
        check: called with the bytes that files claim so far; raises where they are too many.
        notes: receives a line on what lies behind the end of the archive.
    """
    with path.open("rb") as file:
        _check_parts(file)
        with zipfile.ZipFile(file) as archive:
            start = _check_whole(file, archive, notes)
            # By the sizes that the directory claims, so a bomb is refused before anything of it is expanded.
            total = 0
            for entry in archive.infolist():
                total += entry.file_size
                check(total)
                name, problem = _header_problem(file, entry, start)
                if problem:
                    yield Found(normal(name), problem, told=True)
                elif not name.endswith("/"):
                    yield _found(archive, entry, name)


def read_zip(path: Path, wanted: Set[str]) -> Iterator[tuple[str, bytes | str]]:
    """The files in `wanted`, each once, in the archive's own order; or text that says why not."""
    missing = set(wanted)
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            name = normal(_name(_raw(entry), entry.flag_bits, entry.extra, entry.create_system))
            if name not in missing:
                continue
            missing.discard(name)
            try:
                with archive.open(entry) as file:
                    # A byte more than is allowed, whatever size the directory claims: only then is the checksum reached.
                    content: bytes | str = file.read(MAX_FILE_BYTES + 1)
            # Whatever a decoder raises on damaged data, it is damage to this one file.
            except Exception as error:
                content = f"unreadable: {error}"
            yield name, content
            if not missing:
                return


def _check_parts(file: BinaryIO) -> None:
    """Raises zipfile.BadZipFile for one part of an archive that was cut into several."""
    at, record = _end_record(file)
    parts = at is not None and 0 < record[1] < 0xFFFF
    file.seek(0)
    if parts or file.read(4) == b"PK\x07\x08":
        raise zipfile.BadZipFile("a zip in several parts; join them first: zip -s 0 IN.zip --out ONE.zip")


def _check_whole(file: BinaryIO, archive: zipfile.ZipFile, notes: list[str]) -> int:
    """Where the directory begins, once it is found to have as many entries as the record behind it says."""
    at, record = _end_record(file)
    if at is None:
        raise zipfile.BadZipFile("no end of a directory")
    count, size, start = len(archive.infolist()), record[5], record[6]
    recorded, exact, directory_end = record[4], False, at
    # Past 65,535 files the count is in a longer record; older programs count on from zero instead.
    file.seek(max(0, at - _LOCATOR.size - _END64.size))
    longer = file.read(_END64.size)
    if len(longer) == _END64.size and longer[:4] == b"PK\x06\x06":
        recorded, exact = _END64.unpack(longer)[7], True
        size, start = _END64.unpack(longer)[8:]
        directory_end = at - _LOCATOR.size - _END64.size
    if recorded != (count if exact else count & 0xFFFF):
        raise zipfile.BadZipFile(f"{count} files in the directory, {recorded} recorded at its end")
    first = directory_end - size
    file.seek(0)
    if first != start and file.read(2) == b"PK":
        raise zipfile.BadZipFile("another zip lies in front of this one; allowed: one")
    file.seek(0, os.SEEK_END)
    if behind := file.tell() - at - _END.size - record[7]:
        notes.append(f"{behind} bytes behind the end of the archive, ignored")
    return first


def _end_record(file: BinaryIO) -> tuple[int | None, tuple[int, ...]]:
    """Position and fields of the record that ends a zip, the last one in the file."""
    size = file.seek(0, os.SEEK_END)
    start = max(0, size - (1 << 16) - _END.size)
    file.seek(start)
    tail = file.read()
    at = tail.rfind(b"PK\x05\x06")
    if at < 0 or len(tail) - at < _END.size:
        return None, ()
    return start + at, _END.unpack_from(tail, at)


def _header_problem(file: BinaryIO, entry: zipfile.ZipInfo, end: int) -> tuple[str, str]:
    """The name of an entry, and what is wrong with the header in front of its data; "" where nothing is."""
    raw = _raw(entry)
    name = _name(raw, entry.flag_bits, entry.extra, entry.create_system)
    if not 0 <= entry.header_offset < end:
        return name, DAMAGED
    file.seek(entry.header_offset)
    head = file.read(_HEADER.size)
    if len(head) < _HEADER.size or head[:4] != b"PK\x03\x04":
        return name, DAMAGED
    _, _, flags, method, _, _, crc, packed, size, length, extras = _HEADER.unpack(head)
    local, extra = file.read(length), file.read(extras)
    # Names decide about class and part; they have no checksum, but stand in both places.
    same = local == raw and method == entry.compress_type and not flags & ~entry.flag_bits & _ENCRYPTED
    same = same and (raw.isascii() or _name(local, flags, extra, entry.create_system) == name)
    if not flags & _SIZES_BEHIND:
        long = 0xFFFFFFFF in (packed, size)
        same = same and crc == entry.CRC and (long or (packed, size) == (entry.compress_size, entry.file_size))
    first = file.tell()
    if not same or first + entry.compress_size > end:
        return name, DAMAGED
    if method == zipfile.ZIP_LZMA and int.from_bytes(file.read(9)[5:], "little") > MEMORY:
        return name, f"needs more than {MEMORY >> 20} MiB of memory"
    return name, ""


def _found(archive: zipfile.ZipFile, entry: zipfile.ZipInfo, name: str) -> Found:
    """An entry whose header is in order, as a file or link."""
    problem = path_problem(name) or size_problem(entry.file_size)
    if entry.flag_bits & _ENCRYPTED:
        problem = "encrypted"
    elif entry.compress_type not in _READ:
        kind = _METHODS.get(entry.compress_type, f"method {entry.compress_type}")
        problem = f"compressed by {kind}, which is not read; allowed: stored, deflated, bzip2, lzma"
    # The kind of file, where a Unix program wrote it; a link's content is the path it leads to.
    kind_of = stat.S_IFMT(entry.external_attr >> 16) if entry.create_system == _UNIX else 0
    if kind_of == stat.S_IFLNK and not problem and entry.file_size <= _LINK_BYTES:
        to = archive.read(entry).decode("utf-8", "surrogateescape")
        parent = normal(name).rpartition("/")[0]
        return Found(normal(name), link="" if to.startswith("/") else f"{parent}/{to}")
    if kind_of not in (0, stat.S_IFREG, stat.S_IFDIR):
        problem = problem or "a link or device that stands for no file of the archive"
    return Found(normal(name), problem)


def _raw(entry: zipfile.ZipInfo) -> bytes:
    """The bytes of an entry's name, which zipfile has decoded."""
    return entry.orig_filename.encode("utf-8" if entry.flag_bits & _UTF8 else "cp437")


def _name(raw: bytes, flags: int, extra: bytes, system: int) -> str:
    """An entry's name with `/` between the parts, where some Windows programs write backslashes."""
    return _text(raw, flags, extra, system).replace("\\", "/")


def _text(raw: bytes, flags: int, extra: bytes, system: int) -> str:
    if raw.isascii() or flags & _UTF8:
        return raw.decode("utf-8", "surrogateescape")
    # Info-ZIP's own field for the name in UTF-8, good for the name whose checksum it has.
    while len(extra) >= 4:
        kind, length = struct.unpack_from("<HH", extra)
        field, extra = extra[4 : 4 + length], extra[4 + length :]
        if kind == _UNICODE_PATH and field[1:5] == struct.pack("<L", zlib.crc32(raw)):
            return field[5:].decode("utf-8", "surrogateescape")
    # Many programs write UTF-8 and do not say so. Other bytes are a Unix file's own name, or DOS's letters.
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError:
        return raw.decode("utf-8", "surrogateescape") if system == _UNIX else raw.decode("cp437")
