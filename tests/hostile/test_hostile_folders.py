"""Hostile folders and layouts that can be read in two ways: read once and in full, a defect, or one line."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from hostile.harness import Accepted, Case, Refused, knock
from small_archives import FILES, held


def door(folder: Path) -> Any:
    """Open the folder `set` and read all of it: class and content by name, problems, names that are ignored, notes."""
    found = held(folder / "set")
    return [{name: [label, str(content)] for name, (label, content) in found.samples.items()}, *found[1:]]


def files(*names: str) -> Callable[[Path], None]:
    def make(folder: Path) -> None:
        for name in names:
            path = folder / "set" / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(name.encode("utf-8", "surrogateescape"))

    return make


def with_plain(make: Callable[[Path], object]) -> Callable[[Path], None]:
    """The files of `FILES`, and what `make` puts beside them into the folder `set`."""

    def both(folder: Path) -> None:
        files(*FILES)(folder)
        make(folder / "set")

    return both


PLAIN = {name: [name.split("/")[0], str(name.encode())] for name in FILES}


def plain(problems: dict[str, str] | None = None, ignored: tuple[str, ...] = ()) -> Accepted:
    """The files of `FILES` and nothing else, besides these problems."""
    return Accepted([PLAIN, problems or {}, list(ignored), []])


def names(*expected: str) -> Accepted:
    return Accepted(lambda found: list(found[0]) == list(expected))


def classes(*expected: str) -> Accepted:
    return Accepted(lambda found: sorted({label for label, _ in found[0].values()}) == list(expected))


def fan_out(folder: Path) -> None:
    """Forty folders, each with two links to the next: a million million paths to the last one's picture."""
    for number in range(40):
        (folder / f"f{number}").mkdir()
        (folder / f"f{number}" / "0.png").write_bytes(b"x")
        for side in "lr" if number < 39 else "":
            (folder / f"f{number}" / side).symlink_to(f"../f{number + 1}")


def outside(folder: Path) -> None:
    """Pictures outside the folder, reached by two links and a link inside them."""
    pool = folder.with_name("pool")
    (pool / "deep").mkdir(parents=True)
    (pool / "deep" / "0.png").write_bytes(b"x")
    (pool / "back").symlink_to("../set")
    (folder / "emu").symlink_to("../pool")
    (folder / "fox").symlink_to("../pool/deep")


def circles(folder: Path) -> None:
    (folder / "cat" / "again").symlink_to("..")
    (folder / "dog" / "self").symlink_to("self")
    (folder / "a.png").symlink_to("b.png")
    (folder / "b.png").symlink_to("a.png")


def no_files(folder: Path) -> None:
    os.mkfifo(folder / "cat" / "fifo.png")
    (folder / "cat" / "device.png").symlink_to("/dev/zero")
    place = os.open(folder / "cat", os.O_RDONLY)
    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"/proc/self/fd/{place}/socket.png")
    os.close(place)
    (folder / "cat" / "folder.png").mkdir()


def dangling(folder: Path) -> None:
    (folder / "cat" / "gone.png").symlink_to("nowhere")
    (folder / "emu").symlink_to("/nowhere/emu")
    (folder / "notes.txt").symlink_to("nowhere")


def large(folder: Path) -> None:
    with (folder / "cat" / "large.png").open("wb") as file:
        file.truncate(1 << 40)


LOOP = "unreadable: Too many levels of symbolic links"
NOT_ONE = "neither a file nor a link to one"
BYTE = b"\xff".decode("utf-8", "surrogateescape")
CASES = [
    # Links, and what is no file.
    Case(
        "links-that-fan-out", with_plain(fan_out), Accepted(lambda found: len(found[0]) == 44 and len(found[1]) == 78)
    ),
    Case(
        "links-to-one-folder",
        with_plain(outside),
        Accepted(
            [
                PLAIN | {"emu/deep/0.png": ["emu", str(b"x")]},
                {"fox": "a link to a folder that is read already, as emu/deep"},
                [],
                [],
            ]
        ),
    ),
    Case("links-in-circles", with_plain(circles), plain(dict.fromkeys(("a.png", "b.png", "dog/self"), LOOP))),
    Case(
        "fifo-socket-device",
        with_plain(no_files),
        plain(dict.fromkeys(("cat/device.png", "cat/fifo.png", "cat/socket.png"), NOT_ONE)),
    ),
    Case("links-to-nothing", with_plain(dangling), plain({"cat/gone.png": NOT_ONE, "emu": NOT_ONE}, ("notes.txt",))),
    Case(
        "file-of-a-tebibyte", with_plain(large), plain({"cat/large.png": "oversized: 1048576 MiB, at most 256 allowed"})
    ),
    Case("empty-folder", lambda folder: (folder / "set").mkdir(), Refused("0 classes with images found")),
    # Names.
    Case("names-that-a-terminal-obeys", files("a/0.png", "\x1b[2J\n/0.png"), classes(r"\x1b[2J\n", "a")),
    Case(
        "one-class-of-control-characters",
        files("\x1b]0;x\x07/0.png"),
        Refused(r"1 classes with images found \(\\x1b\]0;x\\x07\)"),
    ),
    Case("byte-and-text-of-its-escape", files(f"{BYTE}/0.png", r"\xff/0.png"), classes(r"\\xff", r"\xff")),
    Case(
        "composed-and-decomposed",
        files("gr\u00f6\u00dfe/0.png", "gro\u0308\u00dfe/1.png", "a/0.png"),
        classes("a", "gr\u00f6\u00dfe"),
    ),
    Case(
        "names-without-an-end", files("cat/img0", "dog/img0"), Refused("0 classes .*2 files ignored, such as cat/img0")
    ),
    Case(
        "names-of-255-bytes", files(*(f"{letter * 255}/0.{'x' * 240}" for letter in "ab")), Refused("2 files ignored")
    ),
    Case(
        "other-formats",
        files("cat/0.gif", "dog/0.heic"),
        Refused(r"2 files cannot be used, the first: cat/0\.gif \(a format that is not read"),
    ),
    # Layouts.
    Case("class-called-train", files("bus/0.png", "car/0.png", "train/0.png"), classes("bus", "car", "train")),
    Case("classes-valid-and-invalid", files("valid/0.png", "invalid/0.png"), classes("invalid", "valid")),
    Case(
        "parts-and-one-folder-more",
        files(*(f"{part}/{label}/0.png" for part in ("train", "test", "more") for label in "ab")),
        Refused("layout: auto given, but .* allowed: parts"),
    ),
    Case(
        "classes-with-the-same-folders",
        files(*(f"{part}/{label}/0.png" for part in ("red", "blue") for label in "ab")),
        Refused(r"layout: auto given, .*blue and red have the same folders \(a, b\)"),
    ),
    Case(
        "parts-without-classes",
        files("train/0.png", "test/0.png"),
        Refused(r"0 classes .*the first: test/0\.png \(lies in no class folder"),
    ),
    Case(
        "two-training-parts",
        files(*(f"{part}/{label}/0.png" for part in ("trainA", "trainB") for label in "ab")),
        Refused("layout: auto given"),
    ),
    Case(
        "train-beside-train",
        files("Train/a/0.png", "Train/b/0.png", "train/a/1.png", "train/b/1.png"),
        names("Train/a/0.png", "Train/b/0.png"),
    ),
    Case(
        "test-with-classes-of-its-own",
        files("train/a/0.png", "train/b/0.png", "test/c/0.png"),
        Refused("test has classes that train has not: c"),
    ),
    Case(
        "picture-beside-the-folder-around-all",
        files("set/train/a/0.png", "set/train/b/0.png", "preview.png"),
        Refused(r"preview\.png \(lies in no class folder"),
    ),
    Case(
        "folders-of-file-servers",
        files(*FILES, "@eaDir/0.png/x.jpg", "cat/$RECYCLE.BIN/1.png", "lost+found/2.png"),
        plain(ignored=("@eaDir/0.png/x.jpg", "cat/$RECYCLE.BIN/1.png", "lost+found/2.png")),
    ),
    Case(
        "a-thousand-classes-that-test-has-not",
        files("train/a/0.png", "train/b/0.png", *(f"test/{'c' * 99}{i}/0.png" for i in range(300))),
        Refused("test has classes .* and 295 more"),
    ),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_case(case: Case, tmp_path: Path) -> None:
    knock(door, case, tmp_path)
