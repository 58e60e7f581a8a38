"""Writing whole or not at all: kills between two renames, full and read-only disks, several processes in one folder."""

from __future__ import annotations

import errno
import os
import re
import resource
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from unpoison.core.errors import UserError
from unpoison.core.files import new_file, new_folder, read_json, temporary, write_json
from unpoison.core.manifest import Manifest, check_made_from, is_made_from, read_manifest, write_manifest
from unpoison.core.npy import load_array, load_arrays
from unpoison.core.scratch import empty
from unpoison.core.weights import save_weights


def write(folder: Path, text: str) -> None:
    with new_folder(folder) as staging:
        (staging / "a").write_text(text)
        write_manifest(staging, "about.json", {"format": "x-1", "made_from": {"data": text}})


def killed(folder: Path, text: str, at: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """Write in a process that is killed at its rename number `at`; those that write one file count as well."""
    process = os.fork()
    if process == 0:
        done = [0]
        real = Path.rename

        def rename(path: Path, target: Path) -> Path:
            done[0] += 1
            if done[0] == at:
                os.kill(os.getpid(), signal.SIGKILL)
            return real(path, target)

        monkeypatch.setattr(Path, "rename", rename)
        write(folder, text)
        os._exit(0)
    assert os.WIFSIGNALED(os.waitpid(process, 0)[1])


@pytest.mark.parametrize("at", [1, 2])
@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_a_kill_while_a_folder_is_replaced_loses_neither(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, at: int
) -> None:
    folder = tmp_path / "out"
    write(folder, "old")
    killed(folder, "new", at, monkeypatch)
    # Whoever asks first finds the old one in its place.
    assert is_made_from(folder, "about.json", data="old")
    assert (folder / "a").read_text() == "old"
    killed(folder, "newer", at, monkeypatch)
    write(folder, "newest")
    assert (folder / "a").read_text() == "newest"
    assert [path.name for path in tmp_path.iterdir()] == ["out"]


def test_the_output_of_another_run_is_named(tmp_path: Path) -> None:
    write(tmp_path / "out", "old")
    check_made_from(tmp_path / "out", "about.json", data="old")
    with pytest.raises(
        UserError, match=r"^.*out/about\.json: made from another data \('old', the present one is 'new'\)"
    ):
        check_made_from(tmp_path / "out", "about.json", data="new")


@pytest.mark.parametrize("number", [errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EMFILE, errno.EACCES, errno.EFBIG])
def test_an_error_of_the_disk_is_a_line_and_the_old_output_stays(tmp_path: Path, number: int) -> None:
    write(tmp_path / "out", "old")
    write_json(tmp_path / "one.json", {"a": 1})

    def broken(target: Callable[[Path], Any], path: Path) -> None:
        with target(path) as staging:
            (staging / "a" if staging.is_dir() else staging).write_text("half")
            raise OSError(number, os.strerror(number))

    for target, name in ((new_folder, "out"), (new_file, "one.json")):
        with pytest.raises(UserError, match=rf"^{tmp_path / name}: {os.strerror(number)}.*before is kept$"):
            broken(target, tmp_path / name)
    assert (tmp_path / "out" / "a").read_text() == "old"
    assert read_json(tmp_path / "one.json") == {"a": 1}
    assert sorted(path.name for path in tmp_path.iterdir()) == ["one.json", "out"]


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
@pytest.mark.parametrize("kind", ["array", "archive", "weights"])
def test_a_disk_that_fills_up_is_a_line(tmp_path: Path, kind: str) -> None:
    def write_there(folder: Path) -> None:
        with new_folder(folder) as staging:
            if kind == "array":
                np.save(staging / "a.npy", np.zeros(9999))
            elif kind == "archive":
                np.savez(staging / "a.npz", a=np.zeros(9999))
            else:
                save_weights({"a": torch.zeros(9999)}, staging / "a.safetensors")

    reading, writing = os.pipe()
    process = os.fork()
    if process == 0:
        resource.setrlimit(resource.RLIMIT_FSIZE, (4096, 4096))
        try:
            write_there(tmp_path / "out")
        except UserError as error:
            os.write(writing, str(error).encode())
        finally:
            os._exit(0)
    os.close(writing)
    with os.fdopen(reading) as lines:
        assert re.fullmatch(rf"{tmp_path / 'out'}: .*nothing is half-written, .*", lines.read())
    os.waitpid(process, 0)
    assert not list(tmp_path.iterdir())


def test_a_file_in_the_place_of_a_folder(tmp_path: Path) -> None:
    (tmp_path / "scratch").write_text("")
    for write_there in (
        lambda: write_json(tmp_path / "scratch/costs/a.json", {}),
        lambda: write(tmp_path / "scratch/a", ""),
    ):
        with pytest.raises(UserError, match=r"scratch.*: (File exists|Not a directory); nothing is half-written"):
            write_there()


def test_what_a_living_process_writes_is_left_alone(tmp_path: Path) -> None:
    living = temporary(tmp_path / "out")
    living.mkdir()
    gone = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    dead = living.with_name(living.name.replace(f"-{os.getpid()}-", f"-{int(gone.stdout)}-"))
    dead.mkdir()
    write(tmp_path / "out", "text")
    assert living.exists()
    assert not dead.exists()


@pytest.mark.filterwarnings("ignore:.*fork:DeprecationWarning")
def test_processes_that_write_one_folder_all_end_well(tmp_path: Path) -> None:
    processes = []
    for number in range(6):
        processes.append(os.fork())
        if processes[-1] == 0:
            try:
                for turn in range(60):
                    write(tmp_path / "out", f"{number}/{turn}")
                os._exit(0)
            finally:
                os._exit(1)
    assert [os.waitpid(process, 0)[1] for process in processes] == [0] * 6
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    about = read_manifest(tmp_path / "out", "about.json", "x-1", Manifest)
    assert about.made_from["data"] == (tmp_path / "out" / "a").read_text()


def test_a_link_into_the_cache_is_followed(tmp_path: Path) -> None:
    """As `cache.type = symlink` leaves an artefact."""
    write(tmp_path / "out", "text")
    cached = tmp_path / ".dvc/cache/files/md5/01" / ("23456789ab" * 3)
    cached.parent.mkdir(parents=True)
    shutil.move(tmp_path / "out/about.json", cached)
    (tmp_path / "out/about.json").symlink_to(cached)
    assert is_made_from(tmp_path / "out", "about.json", data="text")
    cached.unlink()
    with pytest.raises(UserError, match=r"about\.json: no such file; run the stage that makes it"):
        is_made_from(tmp_path / "out", "about.json", data="text")


def test_arrays_are_what_was_written(tmp_path: Path) -> None:
    arrays = {"a": np.arange(6).reshape(2, 3).T, "b": np.zeros(0, np.float32), "c": np.array(True)}
    np.savez(tmp_path / "all.npz", **arrays)
    back = load_arrays(tmp_path / "all.npz")
    for name, value in arrays.items():
        np.save(tmp_path / "one.npy", value)
        for read in (load_array(tmp_path / "one.npy"), back[name]):
            assert (read == value).all()
            assert (read.dtype, read.shape) == (value.dtype, value.shape)
    with pytest.raises(UserError, match=r"one\.npy: bool of shape \(\) found, allowed: int64 \[n\]$"):
        load_array(tmp_path / "one.npy", np.int64, ("n",))


def test_every_flip_of_an_archive_is_told(tmp_path: Path) -> None:
    path, rng = tmp_path / "a.npz", np.random.default_rng(0)
    values = rng.integers(0, 256, (4, 5), dtype=np.uint8)
    np.savez(path, values=values)
    whole = path.read_bytes()
    for place in range(len(whole)):
        path.write_bytes(whole[:place] + bytes([whole[place] ^ 1 << int(rng.integers(8))]) + whole[place + 1 :])
        try:
            read = load_arrays(path)
        except UserError:
            continue
        # Dates, attributes and the like, which mean nothing here; or another name.
        assert list(read) != ["values"] or (read["values"] == values).all(), place


def test_weights_that_cannot_be_written(tmp_path: Path) -> None:
    (tmp_path / "w").mkdir()
    with pytest.raises(OSError, match=r"\w"):
        save_weights({"a": torch.zeros(3)}, tmp_path / "w")


def test_the_sweep_is_of_this_name_alone(tmp_path: Path) -> None:
    other = tmp_path / ".other.0123abcd-1-0.partial"
    other.write_text("half")
    os.utime(other, (0, 0))
    write_json(tmp_path / "one.json", {})
    assert other.exists()


def test_emptying_a_folder_says_what_was_there(tmp_path: Path) -> None:
    folder = tmp_path / "scratch"
    assert empty(folder) == "freed: 0.0 MiB"
    (folder / "store" / "variations").mkdir(parents=True)
    (folder / "store" / "variations" / "a.npz").write_bytes(bytes(3 << 20))
    (folder / "note").write_bytes(bytes(1 << 20))
    # What a link leads to stays.
    (tmp_path / "kept").write_bytes(bytes(5 << 20))
    (folder / "link").symlink_to(tmp_path / "kept")
    assert empty(folder).splitlines() == [
        f"{folder}/store: 3.0 MiB",
        f"{folder}/note: 1.0 MiB",
        f"{folder}/link: 0.0 MiB",
        "freed: 4.0 MiB",
    ]
    assert not list(folder.iterdir())
    assert (tmp_path / "kept").exists()
