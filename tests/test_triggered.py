"""Triggered test images and the set that a victim receives: on disk as stamped by hand."""

from __future__ import annotations

import json
from collections.abc import Callable
from functools import partialmethod
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from small_poison import LISTED, MADE_FROM, made, two_triggers, write_small_base
from unpoison.attacks import restored
from unpoison.core.arrays import Images, IntArray
from unpoison.core.errors import UserError
from unpoison.core.manifest import is_made_from
from unpoison.data.imageset import ImageSet
from unpoison.data.store import open_poisoned, open_split
from unpoison.poisoning import triggered as triggered_
from unpoison.poisoning.attacker import read_training, read_triggers, write_training, write_triggers
from unpoison.poisoning.trigger import Trigger, stamp
from unpoison.poisoning.triggered import read_triggered, triggered_of, write_triggered


@pytest.fixture(scope="module")
def base(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("data") / "base"
    write_small_base(folder)
    return folder


@pytest.fixture
def train(base: Path) -> ImageSet:
    return open_split(base, "train")


@pytest.fixture
def test(base: Path) -> ImageSet:
    return open_split(base, "test")


def by_hand(test: ImageSet, keys: list[int], trigger: Trigger) -> Images:
    """One image at a time."""
    return np.concatenate([stamp(trigger, test.gather(np.array([k])), np.array([k]), train=False) for k in keys])


Attacked = Callable[[int], bool]
Wanted = Callable[[int], int]


class TestTriggered:
    @pytest.mark.parametrize("at_once", [50, 7])
    @pytest.mark.parametrize(
        ("attack", "arguments", "policy", "attacked", "wanted"),
        [
            ("badnets", {"location": "random"}, {"target": 4}, lambda y: y != 4, lambda y: 4),
            ("blended", {"test_ratio": 0.5}, {"label_policy": "all2all", "shift": 3}, lambda y: True, lambda y: (y + 3) % 10),
            ("tact", {"size": 3}, {"sources": [2, 6], "target": 9}, lambda y: y in (2, 6), lambda y: 9),
            ("sig", {"test_delta": 60.0}, {"target": 1}, lambda y: y != 1, lambda y: 1),
        ],
        ids=["all2one", "all2all", "source_specific", "clean_label"],
    )  # fmt: skip
    def test_equal_stamping_by_hand(
        self,
        base: Path,
        train: ImageSet,
        test: ImageSet,
        tmp_path: Path,
        monkeypatch: pytest.MonkeyPatch,
        attack: str,
        arguments: dict[str, Any],
        policy: dict[str, Any],
        attacked: Attacked,
        wanted: Wanted,
        at_once: int,
    ) -> None:
        chunks = partialmethod(ImageSet.chunks, most_bytes=at_once * int(np.prod(test.base.shape[1:])))
        monkeypatch.setattr(ImageSet, "chunks", chunks)
        poisoned = made(train, attack, arguments, **policy)
        write_triggers(tmp_path / "triggers", poisoned, MADE_FROM)
        held, made_from = read_triggers(tmp_path / "triggers", restored)
        keys = [key for key, label in enumerate(test.labels.tolist()) if attacked(label)]
        assert write_triggered(tmp_path / "triggered", test, held, made_from) == {attack: len(keys)}
        assert is_made_from(tmp_path / "triggered", triggered_.DESCRIPTION, **MADE_FROM)

        read = read_triggered(tmp_path / "triggered", base)
        assert list(read) == [attack]
        images = read[attack]
        assert len(images) == len(keys)
        assert images.overlay.index.tolist() == keys
        assert images.true.tolist() == test.labels[keys].tolist()
        clean, stamped, received = zip(*images.chunks(), strict=True)
        assert max(map(len, stamped)) <= at_once
        assert (np.concatenate(clean) == test.gather(np.array(keys))).all()
        assert (np.concatenate(stamped) == by_hand(test, keys, poisoned.triggers[0])).all()
        labels = np.concatenate([part.labels for part in received])
        assert labels.tolist() == [wanted(label) for label in test.labels[keys].tolist()]
        in_memory = triggered_of(test, poisoned.truth.policy, poisoned.triggers[0])
        assert (in_memory.overlay.images == np.concatenate(stamped)).all()
        assert (in_memory.overlay.labels == labels).all()
        assert (in_memory.overlay.index == images.overlay.index).all()

    def test_semantic_ones_are_those_that_have_the_property(
        self, base: Path, train: ImageSet, test: ImageSet, tmp_path: Path
    ) -> None:
        poisoned = made(train, "semantic", {**LISTED, "test_index": [10, 13, 27]}, target=0)
        write_triggers(tmp_path / "triggers", poisoned, MADE_FROM)
        held, _ = read_triggers(tmp_path / "triggers", restored)
        # Number 10 is of the target class.
        assert write_triggered(tmp_path / "triggered", test, held, MADE_FROM) == {"semantic": 2}
        images = read_triggered(tmp_path / "triggered", base)["semantic"].overlay
        assert images.index.tolist() == [13, 27]
        assert (images.images[np.arange(2)] == test.gather(np.array([13, 27]))).all()

    def test_of_several_triggers(self, base: Path, train: ImageSet, test: ImageSet, tmp_path: Path) -> None:
        poisoned = two_triggers(train)
        write_triggers(tmp_path / "triggers", poisoned, MADE_FROM)
        held, _ = read_triggers(tmp_path / "triggers", restored)
        assert write_triggered(tmp_path / "triggered", test, held, MADE_FROM) == {"0_badnets": 45, "1_blended": 45}
        read = read_triggered(tmp_path / "triggered", base)
        for number, name in enumerate(("0_badnets", "1_blended")):
            overlay = read[name].overlay
            assert (overlay.labels == number + 1).all()
            expected = by_hand(test, overlay.index.tolist(), poisoned.triggers[number])
            assert (overlay.images[np.arange(45)] == expected).all()

    def test_a_trigger_for_training_alone_is_refused(self, train: ImageSet, test: ImageSet, tmp_path: Path) -> None:
        write_training(tmp_path / "training", made(train, "semantic", LISTED, poison_first=False), MADE_FROM)
        kept = read_training(tmp_path / "training", lambda: restored)
        assert kept is not None
        with pytest.raises(ValueError, match="test_index: not kept"):
            triggered_of(test, kept.truth.policy, kept.triggers[0])

    def test_of_another_base_are_refused(self, train: ImageSet, test: ImageSet, tmp_path: Path) -> None:
        poisoned = made(train, "badnets")
        write_triggers(tmp_path / "triggers", poisoned, MADE_FROM)
        held, _ = read_triggers(tmp_path / "triggers", restored)
        write_triggered(tmp_path / "triggered", test, held, MADE_FROM)
        other = tmp_path / "other"
        write_small_base(other, test_seed=7)
        with pytest.raises(UserError, match=r"badnets/manifest\.json: made for the test split of another base[^\n]+$"):
            read_triggered(tmp_path / "triggered", other)


def test_the_received_set_is_the_same_on_disk(base: Path, train: ImageSet, tmp_path: Path) -> None:
    poisoned = two_triggers(train)
    poisoned.write_overlay(tmp_path / "poisoned", train)
    opened, received = open_poisoned(base, tmp_path / "poisoned"), poisoned.received(train)
    everything: IntArray = np.arange(len(train))
    assert (opened.gather(everything) == received.gather(everything)).all()
    assert (opened.labels == received.labels).all()
    assert (received.labels != train.labels).sum() == poisoned.truth.mask.sum()
    # A victim learns nothing of the attack.
    about = json.loads((tmp_path / "poisoned" / "manifest.json").read_text())
    assert set(about) == {"format", "base", "split", "count", "files"}
    assert set(about["files"]) == {"images.npy", "index.npy", "labels.npy"}
