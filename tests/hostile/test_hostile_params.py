"""Parameter files that are no parameters, or none that can be meant: one line before any stage does anything."""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import pytest

import check_params
from hostile.harness import Accepted, Case, Refused, knock
from parameters import PARAMS, load_params
from unpoison.purification import PURIFIERS

ROOT = Path(__file__).resolve().parents[2]
# The first block without a value, the others with an empty one.
EMPTY_BLOCKS = "".join(f"{name}: {'{}' if number else ''}\n" for number, name in enumerate(PURIFIERS)).encode()


def door(folder: Path) -> Any:
    """The note of the report, once all parameters are read and checked as `check_params` does."""
    params = load_params(folder)
    check_params.check_all(params)
    return params["report"]["note"]


def put(folder: Path, edit: Callable[[Path], object], name: str = "params.yaml") -> None:
    """The repository's parameter files, with one of them edited."""
    shutil.copytree(ROOT / "params", folder / "params")
    shutil.copy(ROOT / PARAMS, folder / PARAMS)
    edit(folder / name)


def case(name: str, edit: Callable[[Path], object], outcome: Refused | Accepted, file: str = "params.yaml") -> Case:
    return Case(name, partial(put, edit=edit, name=file), outcome)


def written(data: bytes) -> Callable[[Path], object]:
    """An edit that puts `data` in the place of the file."""
    return lambda path: path.write_bytes(data)


def added(text: str, encoding: str = "utf-8") -> Callable[[Path], object]:
    """An edit that puts a text behind the file's own."""
    return lambda path: path.write_bytes(path.read_bytes() + text.encode(encoding))


def set_to(key: str, value: str) -> Callable[[Path], object]:
    """An edit that gives the first line with `key` another value, as it stands in the file."""

    def edit(path: Path) -> None:
        lines = path.read_text(encoding="utf-8").splitlines()
        number = next(n for n, line in enumerate(lines) if line.strip().startswith(f"{key}:"))
        indent = len(lines[number]) - len(lines[number].lstrip())
        # A list below the key goes with it.
        while number + 1 < len(lines) and lines[number + 1].startswith(" " * indent + "- "):
            del lines[number + 1]
        lines[number] = f"{' ' * indent}{key}: {value}"
        path.write_text("\n".join(lines) + "\n", encoding="utf-8", newline="")

    return edit


def recoded(encoding: str, errors: str = "replace") -> Callable[[Path], object]:
    """An edit that writes the file in another encoding."""
    return lambda path: path.write_bytes(path.read_text(encoding="utf-8").encode(encoding, errors))


def as_folder(path: Path) -> None:
    path.unlink()
    path.mkdir()


def as_pipe(path: Path) -> None:
    path.unlink()
    os.mkfifo(path)


def as_loop(path: Path) -> None:
    path.unlink()
    path.symlink_to(path.name)


def as_device(path: Path) -> None:
    path.unlink()
    path.symlink_to("/dev/zero")


def bomb(kind: str) -> str:
    """Nine levels of nine aliases: a thousand million values; as lists, or as keys that are merged."""
    levels = ["b0: &b0 {k: 1}" if kind == "merge" else "b0: &b0 [a, a, a, a, a, a, a, a, a]"]
    for level in range(1, 10):
        many = ", ".join([f"*b{level - 1}"] * 9)
        levels.append(f"b{level}: &b{level} {{<<: [{many}]}}" if kind == "merge" else f"b{level}: &b{level} [{many}]")
    return "\n".join(levels) + "\n"


NO_YAML = r"params\.yaml: not readable as YAML \(.*\)$"
CASES = [
    # Files that are something else.
    case("empty", written(b""), Refused(r"params\.yaml: a NoneType found, allowed: a block of keys")),
    case("a-list", written(b"- 1\n"), Refused(r"params\.yaml: a list found, allowed: a block of keys")),
    case("a-text", written(b"seed"), Refused(r"params\.yaml: a str found, allowed: a block of keys")),
    case("noise", written(bytes(range(256)) * 4), Refused(NO_YAML)),
    case("nul", added("a: \0\n"), Refused(NO_YAML)),
    case("png", written(b"\x89PNG\r\n\x1a\n" + b"\0" * 64), Refused(NO_YAML)),
    case("latin-1", added("# gr\xf6\xdfe", "latin-1"), Refused(r"params\.yaml: not readable as YAML \('utf-8' codec")),
    case("utf-16", recoded("utf-16"), Refused(r"params\.yaml: not readable as YAML \('utf-8' codec")),
    case("utf-32", recoded("utf-32"), Refused(NO_YAML)),
    case("byte-order-mark", recoded("utf-8-sig"), Accepted("")),
    case("crlf", lambda p: p.write_bytes(p.read_bytes().replace(b"\n", b"\r\n")), Accepted("")),
    case(
        "missing", lambda p: p.unlink(), Refused(r"params\.yaml: no such file; run stages from the repository's root")
    ),
    case("a-folder", as_folder, Refused(r"params\.yaml: a folder found, allowed: a regular file")),
    case("a-pipe", as_pipe, Refused(r"params\.yaml: a pipe or device found, allowed: a regular file")),
    case("a-link-to-itself", as_loop, Refused(r"params\.yaml: ")),
    case("a-device", as_device, Refused(r"params\.yaml: a pipe or device found, allowed: a regular file")),
    case("a-pipe-for-a-family", as_pipe, Refused(r"params/robust\.yaml: a pipe"), "params/robust.yaml"),
    # Texts that stand for something larger.
    case("two-megabytes", added("#" * (2 << 20)), Refused(r"params\.yaml: longer than 131072 bytes")),
    case(
        "aliases-of-aliases", added(bomb("list")), Refused(r"params\.yaml: not readable as YAML \(aliases that stand")
    ),
    case("merges-of-merges", added(bomb("merge")), Refused(r"params\.yaml: not readable as YAML \(aliases that stand")),
    case("a-list-in-itself", added("a: &a [*a]\n"), Refused(r"\*a stands for no value that ends before it")),
    case("deep-lists", added("a: " + "[" * 5000 + "]" * 5000), Refused(r"blocks in blocks, allowed: 20 levels")),
    case("deep-blocks", added("".join(f"{' ' * n}a:\n" for n in range(300))), Refused(r"allowed: 20 levels")),
    case("digits-of-a-number", set_to("seed", "9" * 5000), Refused(NO_YAML)),
    case(
        "hexadecimal", set_to("seed", "0x" + "f" * 5000), Refused(r"params\.yaml: seed: a whole number of 20000 bits")
    ),
    case("a-long-key", added("a" * 1000 + ": 1\n"), Refused(r"unknown key")),
    case("a-long-value", set_to("recipe", "x" * 9000), Refused(r"recipe: 'xxxx.* … ")),
    # What YAML has besides text, numbers, lists and blocks.
    case("two-of-a-key", added("seed: 1\n"), Refused(NO_YAML)),
    case("two-of-a-key-within", added("x: {a: 1, a: 2}\n"), Refused(NO_YAML)),
    case("an-object", set_to("seed", "!!python/object/apply:os.system [touch canary]"), Refused(NO_YAML)),
    case("an-unknown-tag", set_to("seed", "!!java.util.Date 0"), Refused(NO_YAML)),
    case(
        "a-date",
        set_to("note", "2026-11-25"),
        Refused(r"report\.note: 2026-11-25 given, which is a date; allowed: text in q"),
    ),
    case("an-impossible-date", set_to("note", "2026-13-45"), Refused(NO_YAML)),
    case("a-set", set_to("note", "!!set {a}"), Refused(r"report\.note: a set given, allowed: text, number")),
    case("bytes", set_to("note", "!!binary aGFsbG8="), Refused(r"report\.note: a bytes given, allowed: text, number")),
    case(
        "a-list-as-a-key",
        added("? [a, b]\n: 1\n"),
        Refused(r"params\.yaml: \('a', 'b'\) given as a key, allowed: text"),
    ),
    case("no-key", added("null: 1\n"), Refused(r"params\.yaml: None given as a key, allowed: text")),
    case("a-number-as-a-key", set_to("note", "{1: 2}"), Refused(r"report\.note: 1 given as a key, allowed: text")),
    case("yes-and-no-are-text", set_to("note", "no"), Accepted("no")),
    case("sixty-minutes-are-text", set_to("note", "12:30"), Accepted("12:30")),
    case("an-anchor", set_to("note", "&a 'x'"), Accepted("x")),
    case(
        "not-a-number",
        set_to("poison_rate", ".nan"),
        Refused(r"attack\.poison_rate: nan given; input should be a finite"),
    ),
    case("infinite", set_to("lr", ".inf"), Refused(r"train\.lr: inf given")),
    case(
        "seed-of-64-bits", set_to("seed", str(2**64)), Refused(r"params\.yaml: seed: a whole number of 65 bits given")
    ),
    # Terminals and forms of text.
    case("escape-in-a-value", set_to("recipe", r'"\e[2Jx"'), Refused(r"'\\x1b\[2Jx' given")),
    case("escape-in-a-key", added('"\\e[2J": 1\n'), Refused(r"\\x1b\[2J: unknown key")),
    case("direction-in-a-key", added('"\\u202ea": 1\n'), Refused(r"\\u202ea: unknown key")),
    # Blocks and counts.
    case(
        "an-empty-file-of-a-family", written(b"{}\n"), Refused(r"attacks\.yaml: none: missing"), "params/attacks.yaml"
    ),
    case("empty-blocks", written(EMPTY_BLOCKS), Accepted(""), "params/purifiers.yaml"),
    case(
        "a-million-million-digits",
        lambda p: p.write_text(p.read_text().replace("train: 4800", f"train: {10**12}")),
        Refused(r"data\.digits\.train: 1000000000000 given; input should be less than"),
    ),
    case(
        "a-patch-of-a-square-kilometre",
        set_to("size", str(10**9)),
        Refused(r"badnets\.size: 10{9} given"),
        "params/attacks.yaml",
    ),
    case(
        "a-block-for-a-method",
        set_to("steps", "{a: 1}"),
        Refused(r"cd\.steps: \{'a': 1\} given"),
        "params/detectors.yaml",
    ),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_case(case: Case, tmp_path: Path) -> None:
    knock(door, case, tmp_path)
