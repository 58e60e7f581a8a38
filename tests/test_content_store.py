"""The content store: found by what determines an entry, resumable, damage named and made again."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from unpoison.core.arrays import Arrays, Images, IntArray
from unpoison.core.content_store import ContentStore, Entries, read_kept, write_kept
from unpoison.core.files import temporary

VALUES = np.random.default_rng(0).integers(0, 256, (50, 4, 3), dtype=np.uint8)
NAMES = np.arange(50, dtype=np.uint8)[:, None]


class Counter:
    """Makes the entries asked for and counts them; it can be killed after some calls."""

    def __init__(self, stop_after: int = 10**9) -> None:
        self.entries, self.calls, self.stop_after = 0, 0, stop_after

    def __call__(self, positions: IntArray) -> Images:
        if self.calls == self.stop_after:
            raise KeyboardInterrupt
        self.calls += 1
        self.entries += len(positions)
        return VALUES[positions]


def entries(store: Path | None, make: Counter, *, names: Images = NAMES, setting: int = 1, batch: int = 8) -> Entries:
    return ContentStore(store).entries(
        "kind", {"setting": setting}, names, make, batch=batch, shape=VALUES.shape[1:], dtype=VALUES.dtype
    )


def test_entries_survive_a_kill(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        entries(tmp_path, Counter(stop_after=3))
    # What a process killed while it wrote leaves behind is swept away and read by nobody.
    [folder] = (tmp_path / "kind").iterdir()
    dead = subprocess.run([sys.executable, "-c", "import os; print(os.getpid())"], capture_output=True, check=True)
    living = temporary(folder / "x.npz")
    killed = living.with_name(living.name.replace(f"-{os.getpid()}-", f"-{int(dead.stdout)}-"))
    for path in (living, killed):
        path.write_bytes(b"half")
    counter = Counter()
    kept = entries(tmp_path, counter)
    assert (kept.made, kept.reused, counter.entries) == (26, 24, 26)
    assert (kept.gather() == VALUES).all()
    # That of a living process is its own, until it is a day old: its number may be another's by then, on another machine.
    assert list(folder.glob(".*")) == [living]
    elsewhere = living.with_name(".x.npz.0123abcd-1-0.partial")
    living.rename(elsewhere)
    assert entries(tmp_path, Counter()).made == 0
    assert elsewhere.exists()
    os.utime(elsewhere, (0, 0))
    assert entries(tmp_path, Counter()).made == 0
    assert not list(folder.glob(".*"))


def test_only_what_is_not_there_is_made(tmp_path: Path) -> None:
    entries(tmp_path, Counter())
    names = NAMES.copy()
    names[[3, 30]] += 100
    counter = Counter()
    kept = entries(tmp_path, counter, names=names)
    assert (kept.made, counter.entries) == (2, 2)
    assert (kept.gather() == VALUES).all()
    assert entries(tmp_path, Counter(), names=names).made == 0
    assert entries(tmp_path, Counter(), setting=2).reused == 0


def test_blocks_give_every_entry_once_in_whatever_order_they_are_asked_for(tmp_path: Path) -> None:
    # Two processes that made the same at once, and not the same missing ones together, leave it twice.
    for store, batch in ((tmp_path / "a", 8), (tmp_path / "b", 25)):
        entries(store, Counter(), batch=batch)
    shutil.copytree(tmp_path / "b", tmp_path / "a", dirs_exist_ok=True)
    assert len(list((tmp_path / "a").rglob("*.npz"))) == 7 + 2
    order = np.random.default_rng(1).permutation(50)[:20]
    kept = entries(tmp_path / "a", Counter(), names=NAMES[order])
    assert (kept.made, kept.reused) == (0, 20)
    positions = np.concatenate([positions for positions, _ in kept.blocks()])
    assert sorted(positions) == list(range(20))
    assert all((values == VALUES[order[positions]]).all() for positions, values in kept.blocks())
    assert (kept.gather() == VALUES[order]).all()


def test_without_a_folder_nothing_is_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        kept = entries(None, Counter())
        assert (kept.made, kept.reused) == (50, 0)
        assert (kept.gather() == VALUES).all()
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("damage", ["truncate", "flip"])
def test_a_damaged_shard_is_named_and_made_again(
    damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    entries(tmp_path, Counter(), batch=25)
    shard = sorted(tmp_path.rglob("*.npz"))[0]
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 255
    shard.write_bytes(content[:200] if damage == "truncate" else content)
    kept = entries(tmp_path, Counter(), batch=25)
    assert kept.made == 25
    assert (kept.gather() == VALUES).all()
    assert f"{shard}: damaged" in capsys.readouterr().out


@pytest.mark.parametrize("change", ["dtype", "shape", "names", "fewer", "another's"])
def test_a_shard_of_another_kind_is_made_again(change: str, tmp_path: Path) -> None:
    entries(tmp_path, Counter(), batch=25)
    one, other = sorted(tmp_path.rglob("*.npz"))
    kept = read_kept(one)
    assert kept is not None
    if change == "another's":
        # Whole, with its digest, in another's place.
        one.write_bytes(other.read_bytes())
    else:
        changed: Arrays = {
            "dtype": {"values": kept["values"].astype(np.int16)},
            "shape": {"values": kept["values"].reshape(25, 3, 4)},
            "names": {"names": kept["names"].repeat(2, 1)},
            "fewer": {"values": kept["values"][:-1]},
        }[change]
        write_kept(one, kept | changed)
    again = entries(tmp_path, Counter(), batch=25)
    assert again.made == 25
    assert (again.gather() == VALUES).all()


def test_what_is_gone_before_it_is_read_is_made_again(tmp_path: Path) -> None:
    entries(tmp_path, Counter())
    kept = entries(tmp_path, counter := Counter())
    shutil.rmtree(tmp_path)
    assert (kept.gather() == VALUES).all()
    assert counter.entries == 50


def test_an_asset_is_made_once_for_all_that_determines_it(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made: list[int] = []

    def asset(setting: int) -> Arrays:
        def make() -> Arrays:
            made.append(setting)
            return {"a": np.full(3, setting), "b": np.ones((1, 2), np.float32)}

        return ContentStore(tmp_path).arrays("network", {"b": setting, "a": 0}, make)

    for setting in (1, 1, 2, 1):
        arrays = asset(setting)
        assert arrays["a"].tolist() == [setting] * 3
        assert arrays["b"].dtype == np.float32
        assert set(arrays) == {"a", "b"}
    assert made == [1, 2]
    assert capsys.readouterr().out.count("network: taken from the store") == 2
    for path in (tmp_path / "network").iterdir():
        path.write_bytes(path.read_bytes()[:-30])
    assert asset(2)["a"].tolist() == [2, 2, 2]
    assert made == [1, 2, 2]
