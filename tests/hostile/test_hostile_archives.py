"""Hostile and damaged archives: whole, a defect, or one line."""

from __future__ import annotations

import bz2
import gzip
import io
import lzma
import os
import socket
import stat
import struct
import tarfile
import zipfile
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hostile.harness import Accepted, Case, Refused, knock
from small_archives import FILES, held, tar_bytes, tar_entry, zip_bytes

WHOLE = {name: [name.split("/")[0], content.decode()] for name, content in FILES.items()}
TAR, ZIP = tar_bytes(), zip_bytes()


def door(folder: Path) -> Any:
    """Open the one archive in the folder and read all of it: samples, problems, number of files ignored."""
    found = held(folder / "set")
    samples = {
        name: [label, content if isinstance(content, str) else content.decode("latin-1")]
        for name, (label, content) in found.samples.items()
    }
    return [samples, found.problems, len(found.ignored), found.notes]


def whole(problems: dict[str, str] | None = None, ignored: int = 0) -> Accepted:
    """All files of `FILES` and nothing else, besides these problems."""
    return Accepted([WHOLE, problems or {}, ignored, []])


def written(content: bytes | Callable[[], bytes]) -> Callable[[Path], object]:
    return lambda folder: (folder / "set").write_bytes(content() if callable(content) else content)


def changed(data: bytes, place: int, number: int = 1) -> bytes:
    """The data with one byte changed, counted from the end where `place` is negative."""
    copy = bytearray(data)
    copy[place] ^= number
    return bytes(copy)


def numbered(entry: tarfile.TarInfo, size: bytes) -> bytes:
    """A header with these bytes as the size, and a checksum to match."""
    block = bytearray(entry.tobuf(tarfile.GNU_FORMAT))
    block[124:136] = size
    block[148:156] = b" " * 8
    block[148:156] = b"%06o\0 " % sum(block)
    return bytes(block)


def extended(records: bytes, kind: bytes = tarfile.XHDTYPE) -> bytes:
    """An extended header of these records, as they are."""
    header = tar_entry("././@PaxHeader", kind, size=len(records)).tobuf(tarfile.USTAR_FORMAT)
    return header + records + bytes(-len(records) % 512)


def record(key: bytes, value: bytes) -> bytes:
    length = len(key) + len(value) + 3
    return b"%d %s=%s\n" % (length + len(str(length + 2)), key, value)


def greedy_xz() -> bytes:
    """An xz stream whose header asks for a dictionary of 4 GiB, with the checksum to match."""
    data = bytearray(lzma.compress(TAR))
    size = (data[12] + 1) * 4
    assert data[14] == 0x21, "LZMA2 is the only filter"
    data[16] = 40
    data[12 + size - 4 : 12 + size] = struct.pack("<L", zlib.crc32(data[12 : 12 + size - 4]))
    return bytes(data)


def greedy_zip() -> bytes:
    """A zip of LZMA data whose own header asks for a dictionary of 4 GiB."""
    data = zip_bytes(FILES, zipfile.ZIP_LZMA)
    start = 30 + len("cat/0.png") + 5
    return data[:start] + b"\xff\xff\xff\xff" + data[start + 4 :]


def bomb() -> bytes:
    """Less than 100 KB that become 264 MiB."""
    return lzma.compress(bytes(8 << 20), preset=0) * 33


def crowd() -> bytes:
    """Some KB that become 11,000 empty files."""
    return bz2.compress(tar_entry("cat/0.png").tobuf() * 1000) * 11


def zip_with(change: Callable[[zipfile.ZipFile], object], end: Callable[[bytes], bytes] = bytes) -> Callable[[], bytes]:
    """A zip whose directory is changed before it is written."""

    def make() -> bytes:
        buffer = io.BytesIO()
        with zipfile.ZipFile(buffer, "w") as archive:
            for name, content in FILES.items():
                archive.writestr(name, content)
            change(archive)
        return end(buffer.getvalue())

    return make


def far(archive: zipfile.ZipFile) -> None:
    archive.getinfo("dog/1.png").header_offset = 1 << 62


def smaller(archive: zipfile.ZipFile) -> None:
    archive.filelist.pop(0)


def renamed(archive: zipfile.ZipFile) -> None:
    archive.getinfo("cat/1.png").filename = "cat/1.pnf"


def huge(archive: zipfile.ZipFile) -> None:
    for entry in archive.filelist:
        entry.file_size = 1 << 30


def fifo(archive: zipfile.ZipFile) -> None:
    entry = zipfile.ZipInfo("cat/9.png")
    entry.external_attr = (stat.S_IFIFO | 0o600) << 16
    archive.writestr(entry, b"")


def nul(data: bytes) -> bytes:
    return data.replace(b"cat/1.png", b"cat/1\0png")


def nameless(data: bytes) -> bytes:
    return data.replace(b"cat/1.png", b"./././././"[:9])


def fifo_path(folder: Path) -> None:
    os.mkfifo(folder / "set")


def socket_path(folder: Path) -> None:
    # By a name from the folder itself: addresses of sockets are short.
    place = os.open(folder, os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"/proc/self/fd/{place}/set")
    os.close(place)


def device_path(folder: Path) -> None:
    (folder / "set").symlink_to("/dev/zero")


NO_FILE = "a link or device that stands for no file of the archive"
DAMAGED = "damaged: the archive's directory says otherwise than the file's own header"
LEADS_OUT = "a path that leads out of the archive"
LINKS = (
    tar_entry("cat/a.png", tarfile.SYMTYPE, "/etc/passwd"),
    tar_entry("cat/b.png", tarfile.SYMTYPE, "../../secret.png"),
    tar_entry("cat/c.png", tarfile.LNKTYPE, "../secret.png"),
    tar_entry("cat/d.png", tarfile.SYMTYPE, "e.png"),
    tar_entry("cat/e.png", tarfile.SYMTYPE, "d.png"),
    tar_entry("cat/f.png", tarfile.CHRTYPE),
    tar_entry("cat/g.png", tarfile.FIFOTYPE),
)
DEEP = "/".join(["deep"] * 1200)
CASES = [
    # What a format carries to prove itself whole.
    Case("tar-cut-before-a-header", written(TAR[:2048]), Refused("set: ReadError after 2 files .*cut off")),
    Case("tar-with-one-closing-block", written(TAR[:-512]), Refused("cut off: one of the two blocks")),
    Case("tar-with-a-damaged-header", written(changed(TAR, 1030)), Refused("damaged header at byte 1024")),
    Case("tar-with-another-behind-it", written(TAR + tar_bytes({"emu/0.png": b"x"})), Refused("another tar follows")),
    Case("gzip-cut", written(gzip.compress(TAR)[:-9]), Refused("cut off: the file ends within its gzip data")),
    Case("gzip-with-another-checksum", written(changed(gzip.compress(TAR), -8)), Refused("incorrect data check")),
    Case("gzip-with-another-length", written(changed(gzip.compress(TAR), -1)), Refused("incorrect length check")),
    Case("bzip2-changed", written(changed(bz2.compress(TAR), 40)), Refused("OSError .*Invalid data stream")),
    Case("xz-changed", written(changed(lzma.compress(TAR), -20)), Refused("LZMAError")),
    Case(
        "gzip-whose-second-member-is-damaged",
        written(gzip.compress(TAR[:2048]) + changed(gzip.compress(TAR[2048:]), 0)),
        Refused("cut off"),
    ),
    Case(
        "gzip-of-many-members", written(b"".join(gzip.compress(TAR[i : i + 9]) for i in range(0, len(TAR), 9))), whole()
    ),
    Case(
        "zip-without-its-first-entry",
        written(zip_with(smaller, lambda d: d.replace(b"\3\0\3\0", b"\4\0\4\0"))),
        Refused("3 files in the directory, 4"),
    ),
    Case("zip-behind-another", written(ZIP + zip_bytes({"emu/0.png": b"x"})), Refused("another zip lies in front")),
    Case("zip-cut", written(ZIP[:-30]), Refused("BadZipFile")),
    Case(
        "zip-with-a-name-changed-in-its-directory",
        written(zip_with(renamed)),
        Accepted([{k: v for k, v in WHOLE.items() if k != "cat/1.png"}, {"cat/1.pnf": DAMAGED}, 0, []]),
    ),
    # Memory and time.
    Case(
        "gnu-long-name-of-3-gib",
        written(numbered(tar_entry("x", tarfile.GNUTYPE_LONGNAME), b"30000000000\0") + TAR),
        Refused("a header of more than 1024 KiB"),
    ),
    Case(
        "extended-header-of-1-gib",
        written(numbered(tar_entry("x", tarfile.XHDTYPE), b"10000000000\0") + TAR),
        Refused("a header of more than 1024 KiB"),
    ),
    Case(
        "long-names-for-long-names",
        written(numbered(tar_entry("x", tarfile.GNUTYPE_LONGNAME), b"00000000000\0") * 1500),
        Refused("RecursionError"),
    ),
    Case("xz-dictionary-of-4-gib", written(greedy_xz), Refused("Memory usage limit")),
    Case(
        "zip-dictionary-of-4-gib",
        written(greedy_zip),
        Accepted(lambda found: "256 MiB of memory" in found[1]["cat/0.png"]),
    ),
    Case("xz-bomb", written(bomb), Refused("expands to more than 1000 times")),
    Case("files-without-number", written(crowd), Refused("expands to more than 1000 times")),
    Case("zip-that-claims-4-gib", written(zip_with(huge)), Refused("expands to more than 1000 times")),
    # Parsers.
    Case(
        "tar-with-a-size-below-zero",
        written(numbered(tar_entry("a/1.png"), b"\xff" * 10 + b"\xfe\0") + TAR),
        Refused("leads backwards|below zero"),
    ),
    Case(
        "extended-header-that-ends-early",
        written(extended(b"30 path=cat/9.png\n") + TAR),
        Refused("damaged extended header"),
    ),
    Case(
        "extended-size-that-is-no-number",
        written(extended(record(b"size", b"many")) + TAR),
        Refused("damaged extended header"),
    ),
    Case(
        "extended-header-that-names-every-file",
        written(extended(record(b"path", b"cat/9.png"), tarfile.XGLTYPE) + TAR),
        Refused("every file the same name"),
    ),
    Case(
        "gnu-sparse-list-without-end",
        written(extended(record(b"GNU.sparse.major", b"1") + record(b"GNU.sparse.minor", b"0")) + TAR),
        Refused("ValueError"),
    ),
    Case(
        "one-of-several-volumes", written(tar_entry("cat/9.png", b"M").tobuf() + TAR), Refused("one of several volumes")
    ),
    Case(
        "zip-flagged-as-utf-8-and-not",
        written(zip_bytes({**FILES, "ö/1.png": b"x"}).replace("ö".encode(), b"\xe9x")),
        Refused("UnicodeDecodeError"),
    ),
    Case("zip-entry-far-away", written(zip_with(far)), Accepted(lambda found: found[1] == {"dog/1.png": DAMAGED})),
    Case(
        "zip-name-with-nul",
        written(zip_with(lambda _: None, nul)),
        Accepted(lambda found: len(found[0]) == 3 and found[2] == 1),
    ),
    Case(
        "zip-entry-without-a-name",
        written(zip_with(lambda _: None, nameless)),
        Accepted(lambda found: len(found[0]) == 3),
    ),
    Case(
        "tar-of-1200-levels",
        written(tar_bytes({f"{DEEP}/{n}": c for n, c in FILES.items()})),
        Accepted(lambda found: len(found[0]) == 4),
    ),
    # Links and what is no file.
    Case(
        "links-that-lead-nowhere",
        written(tar_bytes(FILES, *LINKS)),
        whole(dict.fromkeys((e.name for e in LINKS), NO_FILE)),
    ),
    Case(
        "paths-that-lead-out",
        written(tar_bytes({**FILES, "../x.png": b"x", "/y.png": b"y"})),
        Accepted([WHOLE, {"../x.png": LEADS_OUT, "y.png": LEADS_OUT}, 0, []]),
    ),
    Case("zip-with-a-fifo", written(zip_with(fifo)), whole({"cat/9.png": NO_FILE})),
    Case("fifo-for-an-archive", fifo_path, Refused("a FIFO, socket or device; allowed: a folder or archive")),
    Case("socket-for-an-archive", socket_path, Refused("a FIFO, socket or device")),
    Case("device-for-an-archive", device_path, Refused("a FIFO, socket or device")),
    Case("nothing-for-an-archive", lambda _: None, Refused("no such file or folder")),
    Case("zip-in-a-zip", written(zip_bytes({"set.zip": ZIP})), Refused(r"1 files ignored, such as set\.zip")),
    Case("tar-of-nothing", written(bytes(10240)), Refused("0 classes with images found")),
    Case("empty-file", written(b""), Refused(r"ReadError after 0 files \(empty\)")),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_case(case: Case, tmp_path: Path) -> None:
    knock(door, case, tmp_path)
