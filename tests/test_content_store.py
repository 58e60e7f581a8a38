"""The content store: what is there is not made again, a killed run loses one batch, what is damaged is named and remade."""

from __future__ import annotations

import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray

from unpoison.core.arrays import Images, IntArray
from unpoison.core.content_store import ContentStore, Entries
from unpoison.data.imageset import ImageSet, Overlay
from unpoison.variations.generate import names_of

ABOUT = {"settings": 1}


DAMAGES = ["truncated", "flipped", "empty", "another file", "password", "version"]


def spoil(file: Path, damage: str) -> None:
    content = bytearray(file.read_bytes())
    # The archive's directory at its end: eight bytes in, a bit says that a file is encrypted.
    entry = content.index(b"PK\x01\x02")
    place, bits = {"password": (entry + 8, 1), "version": (entry + 6, 255)}.get(damage, (len(content) // 2, 255))
    content[place] ^= bits
    spoilt = {"truncated": content[:200], "empty": b"", "another file": b"no archive at all"}
    file.write_bytes(spoilt.get(damage, content))


def named(keys: list[int] | IntArray) -> Images:
    """Names of samples: eight bytes of their key."""
    return np.ascontiguousarray(keys, "<i8").view(np.uint8).reshape(len(keys), 8)


class Maker:
    """Makes three times the key for each name, and notes the keys; it is interrupted after some batches."""

    def __init__(self, names: Images, stop_after: int = 10**9) -> None:
        self.names, self.stop_after = names, stop_after
        self.batches: list[list[int]] = []

    def __call__(self, positions: IntArray) -> NDArray[Any]:
        if len(self.batches) == self.stop_after:
            raise KeyboardInterrupt
        keys = self.names[positions].copy().view("<i8")[:, 0]
        self.batches.append(keys.tolist())
        return np.stack([3 * keys, -keys], 1)


def ask(store: ContentStore, keys: list[int] | IntArray, batch: int = 2, **about: Any) -> tuple[Entries, Maker]:
    names = named(keys)
    maker = Maker(names)
    entries = store.entries("numbers", {**ABOUT, **about}, names, maker, batch=batch)
    assert entries.gather().tolist() == [[3 * key, -key] for key in keys]
    assert sorted(position for positions, _ in entries.blocks() for position in positions) == list(range(len(keys)))
    return entries, maker


class TestArrays:
    def test_are_made_once_for_what_determines_them(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
        store, calls = ContentStore(tmp_path), []

        def asset(value: int, kind: str = "thing", **about: Any) -> Any:
            made = {"a": np.full((2, 3), value), "b": np.array([value], np.int8)}
            arrays = store.arrays(kind, {"value": value, **about}, lambda: calls.append(value) or made)
            assert {name: array.dtype for name, array in arrays.items()} == {"a": np.int64, "b": np.int8}
            assert (arrays["a"] == value).all()
            assert arrays["a"].shape == (2, 3)

        for value in (1, 1, 2, 1, 2):
            asset(value)
        assert calls == [1, 2]
        said = capsys.readouterr().out
        assert (said.count("thing: made in"), said.count("thing: taken from the store")) == (2, 3)
        asset(1, code={"unpoison.some": "another digest"})
        asset(1, kind="another thing")
        assert calls == [1, 2, 1, 1]
        # The order of what determines an asset says nothing.
        store.arrays("pair", {"x": 1, "y": 2}, lambda: {"a": np.zeros(1)})
        store.arrays("pair", {"y": 2, "x": 1}, lambda: pytest.fail("made again"))

    @pytest.mark.parametrize("damage", DAMAGES)
    def test_damaged_ones_are_named_and_made_again(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
    ) -> None:
        store = ContentStore(tmp_path)
        first = store.arrays("thing", ABOUT, lambda: {"a": np.arange(1000)})
        (file,) = tmp_path.rglob("*.npz")
        spoil(file, damage)
        again = store.arrays("thing", ABOUT, lambda: {"a": np.arange(1000)})
        assert (again["a"] == first["a"]).all()
        assert f"{file}: damaged" in capsys.readouterr().out
        kept = store.arrays("thing", ABOUT, lambda: pytest.fail("made a third time"))
        assert (kept["a"] == first["a"]).all()

    def test_without_a_folder_are_made_each_time(self) -> None:
        store, calls = ContentStore(None), []
        for _ in range(2):
            assert store.arrays("thing", ABOUT, lambda: {"a": np.array(calls.append(1) or 7)})["a"] == 7
        assert len(calls) == 2

    def test_what_a_killed_run_left_is_swept(self, tmp_path: Path) -> None:
        killed("arrays", tmp_path, saved=0)
        assert len(list(tmp_path.rglob("*.partial"))) == 1
        assert not list(tmp_path.rglob("*.npz"))
        store = ContentStore(tmp_path)
        # Another asset's leftover may be of a run that goes on.
        store.arrays("numbers", {"settings": 2}, lambda: {"a": np.zeros(1)})
        assert len(list(tmp_path.rglob("*.partial"))) == 1
        store.arrays("numbers", ABOUT, lambda: {"a": np.zeros(1)})
        assert not list(tmp_path.rglob("*.partial"))
        assert len(list(tmp_path.rglob("*.npz"))) == 2


class TestEntries:
    def test_are_made_for_new_names_alone(self, tmp_path: Path) -> None:
        store = ContentStore(tmp_path)
        made = []
        for keys in ([5, 1, 3], [3, 1], [1, 9, 5], [9, 8, 7, 6, 5]):
            entries, maker = ask(store, keys)
            made.append(maker.batches)
            assert (entries.made, entries.reused) == (sum(map(len, maker.batches)), len(keys) - entries.made)
        assert made == [[[5, 1], [3]], [], [[9]], [[8, 7], [6]]]
        # Another setting is another set of entries.
        assert ask(store, [5, 1, 3], settings=2)[0].made == 3

    def test_without_a_folder_are_made_each_time(self) -> None:
        store = ContentStore(None)
        for _ in range(2):
            entries, maker = ask(store, [4, 2, 8])
            assert (entries.made, entries.reused) == (3, 0)
            assert maker.batches == [[4, 2], [8]]

    def test_an_interrupted_run_keeps_its_batches(self, tmp_path: Path) -> None:
        store, names = ContentStore(tmp_path), named(np.arange(50))
        with pytest.raises(KeyboardInterrupt):
            store.entries("numbers", ABOUT, names, Maker(names, stop_after=3), batch=8)
        entries, maker = ask(store, np.arange(50), batch=8)
        assert (entries.made, entries.reused) == (26, 24)
        assert maker.batches[0] == list(range(24, 32))

    def test_a_killed_run_keeps_its_batches_and_its_leftovers_are_swept(self, tmp_path: Path) -> None:
        killed("entries", tmp_path, saved=3)
        assert len(list(tmp_path.rglob("*.partial"))) == 1
        entries, maker = ask(ContentStore(tmp_path), np.arange(50), batch=8)
        assert (entries.made, entries.reused) == (26, 24)
        assert maker.batches[0] == list(range(24, 32))
        assert not list(tmp_path.rglob("*.partial"))
        assert len(list(tmp_path.rglob("*.npz"))) == 7

    @pytest.mark.parametrize("damage", DAMAGES)
    def test_of_a_damaged_file_are_named_and_made_again(
        self, tmp_path: Path, capsys: pytest.CaptureFixture[str], damage: str
    ) -> None:
        store = ContentStore(tmp_path)
        ask(store, np.arange(50), batch=25)
        file = sorted(tmp_path.rglob("*.npz"))[0]
        with np.load(file) as shard:
            lost = shard["names"].copy().view("<i8")[:, 0].tolist()
        spoil(file, damage)
        entries, maker = ask(store, np.arange(50), batch=25)
        assert (entries.made, entries.reused) == (25, 25)
        assert maker.batches == [lost]
        assert f"{file}: damaged" in capsys.readouterr().out
        assert ask(store, np.arange(50), batch=25)[0].made == 0

    def test_in_two_files_are_given_once(self, tmp_path: Path) -> None:
        """As two runs leave them that made the same entries side by side."""
        ask(ContentStore(tmp_path / "one"), [1, 2, 3], batch=3)
        ask(ContentStore(tmp_path / "two"), [3, 4], batch=2)
        (folder,) = (tmp_path / "one" / "numbers").iterdir()
        for file in (tmp_path / "two").rglob("*.npz"):
            file.rename(folder / file.name)
        entries, _ = ask(ContentStore(tmp_path / "one"), [4, 3, 2, 1])
        assert (entries.made, entries.reused) == (0, 4)

    def test_are_found_by_an_image_s_bytes_and_its_index(self, tmp_path: Path) -> None:
        images = np.random.default_rng(0).integers(0, 256, (50, 4, 4, 3), dtype=np.uint8)
        data = ImageSet(images, np.zeros(50, np.int64), ("a",))
        index = np.array([3, 30])
        stamped = ImageSet(images, data.labels, ("a",), "", Overlay(index, images[index] ^ 1, data.labels[index]))
        twice = ImageSet(np.repeat(images[:1], 2, 0), data.labels[:2], ("a",))
        made: list[list[int]] = []

        def inverted(of: ImageSet) -> NDArray[Any]:
            def make(positions: IntArray) -> Images:
                made.append(positions.tolist())
                return 255 - of.gather(positions)

            return ContentStore(tmp_path).entries("inverted", ABOUT, names_of(of), make, batch=64).gather()

        for of, expected in ((data, list(range(50))), (stamped, [3, 30]), (data, None), (twice, [1])):
            made.clear()
            assert (inverted(of) == 255 - of.gather(np.arange(len(of)))).all()
            assert made == ([] if expected is None else [expected])


KILLED = """
import os, signal, sys
from pathlib import Path
import numpy as np
from unpoison.core.content_store import ContentStore

what, folder, saved = sys.argv[1], Path(sys.argv[2]), int(sys.argv[3])
savez = np.savez

def half(file, **arrays):
    global saved
    if not saved:
        file.write(b"half of it")
        file.flush()
        os.kill(os.getpid(), signal.SIGKILL)
    saved -= 1
    savez(file, **arrays)

np.savez = half
names = np.arange(50, dtype="<i8").view(np.uint8).reshape(50, 8)
store = ContentStore(folder)
if what == "arrays":
    store.arrays("numbers", {"settings": 1}, lambda: {"a": np.arange(9)})
else:
    store.entries("numbers", {"settings": 1}, names, lambda at: np.stack([3 * at, -at], 1), batch=8)
"""


def killed(what: str, folder: Path, *, saved: int) -> None:
    """A process of its own that is killed while it writes, after so many files."""
    command = [sys.executable, "-c", KILLED, what, str(folder), str(saved)]
    assert subprocess.run(command, check=False).returncode == -signal.SIGKILL
