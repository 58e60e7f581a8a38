"""The digits set, the on-disk formats, overlays, augmentation."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from unpoison.core.errors import UserError
from unpoison.core.files import new_folder
from unpoison.core.npy import load_array
from unpoison.core.seeding import derive, numpy_rng, torch_rng
from unpoison.data import shards
from unpoison.data.imageset import ImageSet, Overlay
from unpoison.data.shards import Shards, ShardWriter
from unpoison.data.store import new_overlay, open_poisoned, open_split, write_base
from unpoison.sources import digits
from unpoison.training.augment import AUGMENTATIONS, Batch, apply, draw

SIZES = {"train": 60, "test": 20, "reserve": 10, "public": 20}


@pytest.fixture
def base(tmp_path: Path) -> Path:
    write_base(tmp_path / "base", digits.build(SIZES), classes=digits.CLASSES, name="digits")
    return tmp_path / "base"


def test_digits_are_deterministic_and_balanced() -> None:
    first, second = digits.build(SIZES), digits.build(SIZES)
    for name, size in SIZES.items():
        images, labels = first[name]
        assert images.shape == (size, 32, 32, 3)
        assert images.dtype == np.uint8
        assert set(np.bincount(labels)) == {size // 10}
        assert (images == second[name][0]).all()


def test_scans_behind_the_splits_are_disjoint_and_all_used() -> None:
    classes = np.repeat(np.arange(10), 40)
    pools = digits.share_out(classes, SIZES, numpy_rng(digits._SEED, "digits/scans"))
    for digit in range(10):
        used = np.concatenate([pools[name][digit] for name in SIZES])
        assert len(set(used)) == len(used) == 40
        assert (classes[used] == digit).all()


def test_too_small_a_split_is_refused() -> None:
    with pytest.raises(UserError, match=r"^train: 9 given, allowed: 0 or at least 10"):
        digits.build({"train": 9})


def test_base_round_trip(base: Path) -> None:
    data = open_split(base, "train")
    images, labels = digits.build(SIZES)["train"]
    assert (data.gather(np.arange(60)) == images).all()
    assert (data.labels == labels).all()
    with pytest.raises(UserError, match="split 'val' asked for, available: "):
        open_split(base, "val")


@pytest.mark.parametrize("damage", ["truncate", "flip"])
def test_changed_file_is_refused(base: Path, damage: str) -> None:
    path = base / "train" / "images.npy"
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content[:-100] if damage == "truncate" else content)
    with pytest.raises(UserError, match=r"train/images\.npy: digest mismatch"):
        open_split(base, "train")


def test_pickled_array_is_refused(tmp_path: Path) -> None:
    # Written here and never unpickled: it is what the reader must refuse.
    np.save(tmp_path / "a.npy", np.array([{"a": 1}], dtype=object), allow_pickle=True)
    with pytest.raises(UserError, match=r"a\.npy: not a readable \.npy array"):
        load_array(tmp_path / "a.npy")


def test_overlay_replaces_and_names_its_base(base: Path, tmp_path: Path) -> None:
    data = open_split(base, "train")
    index = np.array([3, 7, 59])
    with new_overlay(tmp_path / "poisoned", data, index, np.array([1, 2, 3])) as overlay:
        overlay.write(np.array([2]), 255 - data.gather(index[2:]))
        overlay.write(np.array([0, 1]), 255 - data.gather(index[:2]))
    poisoned = open_poisoned(base, tmp_path / "poisoned")
    wanted = np.array([7, 0, 59, 3, 7])
    assert (poisoned.gather(wanted)[[0, 2, 3]] == 255 - data.gather(wanted[[0, 2, 3]])).all()
    assert (poisoned.gather(wanted)[1] == data.gather(wanted[1:2])[0]).all()
    assert poisoned.labels[index].tolist() == [1, 2, 3]
    write_base(base, digits.build({**SIZES, "train": 70}), classes=digits.CLASSES)
    with pytest.raises(UserError, match="made for the train split of another base data set"):
        open_poisoned(base, tmp_path / "poisoned")


def test_shards_read_what_was_written_and_map_nothing_for_good(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shards, "SHARD_BYTES", 7 * 48)
    rng = np.random.default_rng(0)
    images, order = rng.integers(0, 256, (50, 4, 4, 3), dtype=np.uint8), rng.permutation(50)
    writer = ShardWriter(tmp_path, 50, (4, 4, 3))
    for part in np.array_split(order, 6):
        writer.write(part, images[part])
    assert len(writer.close()) == 50
    assert len(writer.paths) == 8
    read = Shards(writer.paths)
    wanted = rng.integers(0, 50, 200)
    assert (read[wanted] == images[wanted]).all()
    assert np.load(writer.paths[0], allow_pickle=False).shape == (7, 4, 4, 3)
    assert str(tmp_path) not in Path("/proc/self/maps").read_text()


def test_failed_write_leaves_the_old_folder(tmp_path: Path) -> None:
    with new_folder(tmp_path / "out") as staging:
        (staging / "a").write_text("old")

    def fail() -> None:
        with new_folder(tmp_path / "out") as staging:
            (staging / "a").write_text("new")
            raise RuntimeError("stopped in the middle")

    with pytest.raises(RuntimeError):
        fail()
    assert [p.name for p in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out" / "a").read_text() == "old"


def augment(images: torch.Tensor, names: list[str], generator: torch.Generator, epoch: int = 0) -> torch.Tensor:
    batch = Batch(torch.arange(len(images)), epoch, (images.shape[2], images.shape[3]), generator)
    return apply(images, names, draw(names, batch))


@pytest.mark.parametrize("name", AUGMENTATIONS)
def test_augmentation_keeps_shape_and_range_and_is_seeded(name: str) -> None:
    images = torch.rand(6, 3, 32, 32, generator=torch.Generator().manual_seed(0))
    once, again = (augment(images, [name], torch_rng(0, "test")) for _ in range(2))
    assert once.shape == images.shape
    assert once.min() >= 0
    assert once.max() <= 1
    assert torch.equal(once, again)
    assert not torch.equal(once, images)


def test_crop_shifts_each_image_as_one() -> None:
    images = torch.rand(4, 3, 32, 32)
    cropped = augment(images, ["crop"], torch_rng(3, "test"))
    for image, result in zip(images, cropped, strict=True):
        padded = torch.nn.functional.pad(image, (4, 4, 4, 4))
        places = [(r, c) for r in range(9) for c in range(9) if torch.equal(padded[:, r : r + 32, c : c + 32], result)]
        assert len(places) == 1


def test_translate_mirrors_the_border() -> None:
    images = torch.rand(4, 3, 32, 32)
    for image, result in zip(images, augment(images, ["translate"], torch_rng(3, "test")), strict=True):
        padded = torch.nn.functional.pad(image[None], (2, 2, 2, 2), mode="reflect")[0]
        assert any(torch.equal(padded[:, r : r + 32, c : c + 32], result) for r in range(5) for c in range(5))


def test_alternating_flip_shows_each_side_every_second_epoch() -> None:
    images = torch.rand(64, 3, 32, 32)
    first, second, third = (augment(images, ["alternating_flip"], torch_rng(0, "test"), epoch) for epoch in range(3))
    assert torch.equal(first, third)
    assert torch.equal(second, first.flip(3))
    flipped = (first != images).flatten(1).any(1).sum().item()
    assert 20 < flipped < 44


def test_seeds_differ_by_every_part() -> None:
    assert len({derive(0, "a"), derive(1, "a"), derive(0, "b"), derive(0, "a", 0), derive(0, "a", 1)}) == 5


def test_subset_is_what_gather_gives() -> None:
    data = ImageSet(np.arange(5 * 4 * 4 * 3, dtype=np.uint8).reshape(5, 4, 4, 3), np.arange(5), tuple("abcde"))
    part = data.subset(np.array([4, 1]))
    assert (part.base == data.base[[4, 1]]).all()
    assert part.labels.tolist() == [4, 1]
    with pytest.raises(ValueError, match="of one size"):
        part.followed_by(ImageSet(data.base[:, :3], data.labels, data.classes))


def test_sets_are_read_one_after_another_from_where_they_are() -> None:
    images, classes = np.arange(5 * 4 * 4 * 3, dtype=np.uint8).reshape(5, 4, 4, 3), tuple("abcdefghij")
    overlay = Overlay(np.array([2]), images[:1] + 100, np.array([7]))
    first, second = ImageSet(images, np.arange(5), classes), ImageSet(images[:2] + 50, np.array([8, 9]), classes)
    joined = ImageSet(images, np.array([0, 1, 7, 3, 4]), classes, overlay=overlay).followed_by(second, first)
    assert (joined.labels.tolist(), joined.classes) == ([0, 1, 7, 3, 4, 8, 9, 0, 1, 2, 3, 4], classes)
    assert (len(joined), joined.base.nbytes) == (12, 12 * 48)
    expected = np.concatenate([images, images[:2] + 50, images])
    expected[2] = images[0] + 100
    for index in (np.arange(12), np.array([11, 2, 6, 5, 2, -1 % 12]), np.array([], np.int64)):
        assert (joined.gather(index) == expected[index]).all()
    assert (joined.base[3:9] == expected[3:9]).all()
    # What was read is a copy: writing to it changes neither set.
    joined.gather(np.arange(12))[:] = 0
    assert images.any()
    assert (joined.subset(np.array([8, 1])).base == expected[[8, 1]]).all()
