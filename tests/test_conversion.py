"""Checkpoints of torch become safetensors; what asks for more is refused in one line and has no effect."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

import pytest
import torch
from torch import nn

from unpoison.core.errors import UserError
from unpoison.core.files import sha256_file
from unpoison.core.weights import Weights
from unpoison.models import confined, conversion
from unpoison.models.conversion import convert


class Touch:
    """What a hostile pickle runs when it is read."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.system, (f"touch {self.path}",)


class RefusedError(Exception):
    """In place of the end of the process."""


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8))


def read(path: Path, monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """What the confined process does with a file, in this one; for files that do nothing."""

    def refuse(reason: str) -> NoReturn:
        raise RefusedError(reason)

    monkeypatch.setattr(confined, "refuse", refuse)
    try:
        loaded = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:
        raise RefusedError(confined.reason_of(error)) from None
    return confined.plain(confined.tensors_of(loaded, torch.Tensor))


@pytest.mark.parametrize(
    "wrapped",
    [
        lambda state: state,
        lambda state: {"state_dict": state, "epoch": 3, "optimizer": {"lr": 0.1}},
        lambda state: {"model": {"net": {f"module.{name}": value for name, value in state.items()}}},
        lambda state: OrderedDict(
            (name, nn.Parameter(value) if value.is_floating_point() else value) for name, value in state.items()
        ),
    ],
)
def test_state_dicts_as_scripts_keep_them(
    wrapped: Callable[[Any], Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = network().state_dict()
    torch.save(wrapped(state), tmp_path / "model.pt")
    found = read(tmp_path / "model.pt", monkeypatch)
    assert list(found) == list(state)
    assert all(torch.equal(found[name], value) and not found[name].requires_grad for name, value in state.items())


@pytest.mark.parametrize(
    ("content", "line"),
    [
        (network, r"asks for torch\.nn\.modules\.container\.Sequential, which is no tensor; allowed: a state dict"),
        (lambda: {"a": Touch(Path("never"))}, r"asks for posix\.system, which is no tensor"),
        (lambda: [torch.ones(2)], "no state dict found but list; allowed: tensors by name"),
        (dict, "no state dict found but "),
        (lambda: {"model": {"a": 1}, "net": {"a": torch.ones(1)}}, "no state dict found but 'model', 'net'"),
        (lambda: {"a": torch.ones(3).to_sparse()}, "a: a tensor that is sparse or quantised"),
        (
            lambda: {"a": torch.ones(1, device="meta")},
            "a: a tensor that is sparse or quantised|not readable as weights",
        ),
        (lambda: {"a\x1b": torch.ones(1)}, r"a tensor named 'a\\x1b', allowed: printable text"),
        (lambda: {1: torch.ones(1)}, "a tensor named 1, allowed"),
    ],
)
def test_what_is_no_state_dict(
    content: Callable[[], Any], line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    torch.save(content(), tmp_path / "model.pt")
    with pytest.raises(RefusedError, match=line):
        read(tmp_path / "model.pt", monkeypatch)
    assert not Path("never").exists()


@pytest.mark.parametrize("data", [b"", b"hello", b"\x80\x04\x95", b"PK\x03\x04" + bytes(100)])
def test_what_is_no_checkpoint(data: bytes, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "model.pt").write_bytes(data)
    with pytest.raises(RefusedError, match="not readable as weights"):
        read(tmp_path / "model.pt", monkeypatch)


def test_a_checkpoint_is_converted_by_itself(tmp_path: Path) -> None:
    state, source, target = network().state_dict(), tmp_path / "model.pth", tmp_path / "model.safetensors"
    torch.save({"state_dict": state}, source)
    converted = convert(source, target)
    assert (converted.tensors, converted.digest) == (len(state), sha256_file(source))
    written = Weights(target).read()
    assert all(torch.equal(written[name], value) for name, value in state.items())
    # A file that is there is not written again, and other names are not taken.
    for wrong, line in ((target, "exists, allowed: a new name"), (tmp_path / "x.pt", "ends in .safetensors")):
        with pytest.raises(UserError, match=line):
            convert(source, wrong)
    with pytest.raises(UserError, match="no such file"):
        convert(tmp_path / "absent.pt", tmp_path / "new.safetensors")


def test_a_refusal_leaves_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    source, mark = tmp_path / "model.pt", tmp_path / "mark"
    # Four bytes that stand for twelve thousand million; read whole, they would take 12 GB.
    torch.save({"a": torch.ones(1).expand(3 * 10**9)}, source)
    monkeypatch.setattr(sys, "argv", ["conversion", str(source), str(tmp_path / "model.safetensors")])
    with pytest.raises(SystemExit, match=rf"^error: {source}: {confined.TOO_MUCH}$"):
        conversion.main()
    torch.save({"a": Touch(mark)}, source)
    with pytest.raises(UserError, match=rf"^{source}: asks for posix\.system"):
        convert(source, tmp_path / "model.safetensors")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["model.pt"]


def confine(code: str, folder: Path) -> subprocess.CompletedProcess[str]:
    """Code of a process that has confined itself, without torch. `allowed` is the file that it may write."""
    begin = f"import runpy; confined = runpy.run_path({confined.__file__!r}); hook, limit = confined['hook'], confined['limit']\n"
    return subprocess.run(
        [sys.executable, "-I", "-c", f"{begin}import os, socket\n{code}"],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.mark.parametrize(
    ("attempt", "asked"),
    [
        ("open('other', 'w')", "asks for 'other' to be written"),
        ("os.open('other', os.O_CREAT | os.O_RDWR)", "asks for 'other' to be written"),
        ("socket.create_connection(('127.0.0.1', 9))", "asks for socket."),
        ("socket.getaddrinfo('example.org', 80)", "asks for socket.getaddrinfo"),
        ("os.system('touch other')", "asks for os.system"),
        ("os.fork()", "asks for os.fork"),
        ("__import__('subprocess').run(['touch', 'other'])", "asks for subprocess.Popen"),
        ("os.remove('allowed')", "asks for os.remove"),
    ],
)
def test_a_confined_process_reaches_nothing(attempt: str, asked: str, tmp_path: Path) -> None:
    done = confine(f"hook('allowed')\nopen('allowed', 'w').close()\n{attempt}\nprint('escaped')", tmp_path)
    assert (done.returncode, "escaped" in done.stdout) == (3, False), done.stderr
    assert asked in done.stdout
    assert [path.name for path in tmp_path.iterdir()] == ["allowed"]


def test_a_confined_process_has_bounds(tmp_path: Path) -> None:
    done = confine("limit(1000)\nbytearray(1 << 29)\nprint('some')\nbytearray(3 << 30)\nprint('all')", tmp_path)
    assert done.stdout == "some\n"
    assert "MemoryError" in done.stderr


def test_a_confined_process_has_no_network(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        code = f"print(confined['without_network']())\nsocket.create_connection(('127.0.0.1', {port}), 5)\nprint('through')"
        done = confine(code, tmp_path)
    # Where the kernel does not allow it, the process says so and the hook above is what is left.
    assert done.stdout in ("True\n", "False\nthrough\n")
