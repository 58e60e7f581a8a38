"""What an attacker keeps, what his hand in training gets, the triggered test images and the truth: each as an artefact."""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from small_poison import CLASSES, LISTED, MADE_FROM, made, two_triggers, write_small_base
from unpoison.attacks import restored
from unpoison.core.arrays import IntArray
from unpoison.core.errors import UserError
from unpoison.core.manifest import is_made_from
from unpoison.crafting.stamping import Stamping
from unpoison.data.imageset import ImageSet
from unpoison.data.store import open_split
from unpoison.poisoning import attacker as attacker_
from unpoison.poisoning import triggered as triggered_
from unpoison.poisoning import truth as truth_
from unpoison.poisoning.attacker import Restore, read_training, read_triggers, write_training, write_triggers
from unpoison.poisoning.trigger import stamp
from unpoison.poisoning.triggered import read_triggered, write_triggered
from unpoison.poisoning.truth import read_truth, write_truth


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


def bytes_of(folder: Path) -> dict[str, str]:
    """Every file of a folder by its path in there, as a digest."""
    files = (path for path in folder.rglob("*") if path.is_file())
    return {path.relative_to(folder).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest() for path in files}


class TestOnly(NamedTuple):
    """A parameter that only the test reads, and one that training reads."""

    __test__ = False

    attack: str
    arguments: dict[str, Any]
    at_the_test: dict[str, Any]
    in_training: dict[str, Any]


PARAMETERS = [
    TestOnly("sig", {}, {"test_delta": 60.0}, {"delta": 30.0}),
    TestOnly("blended", {}, {"test_ratio": 0.5}, {"pattern": "strip"}),
    TestOnly("ctrl", {"positions": [[3, 3]]}, {"test_magnitude": 50.0}, {"positions": [[3, 4]]}),
    TestOnly("adaptive_blend", {}, {"test_ratio": 0.9}, {"ratio": 0.3}),
    TestOnly("semantic", LISTED, {"test_index": [5]}, {"train_index": list(range(0, 200, 2))}),
]
ONCE: dict[str, Any] = {}
LATE, ANEW = {"poison_first": False}, {"random_poisoning": True, "cover_ratio": 0.0}
# An attack that chooses its samples takes no random ones.
STAMPED = [
    (case, policy)
    for case in PARAMETERS
    for policy in (ONCE, LATE, ANEW)
    if (case.attack, policy) != ("semantic", ANEW)
]


class TestHandInTraining:
    @pytest.mark.parametrize(
        ("case", "policy"), STAMPED, ids=["-".join([case.attack, *policy]) for case, policy in STAMPED]
    )
    def test_a_parameter_of_the_test_leaves_it_as_it_is(
        self, train: ImageSet, tmp_path: Path, case: TestOnly, policy: dict[str, Any]
    ) -> None:
        hand, triggers = [], []
        for number, change in enumerate(({}, case.at_the_test, case.in_training)):
            poisoned = made(train, case.attack, {**case.arguments, **change}, **policy)
            write_training(tmp_path / f"training{number}", poisoned, MADE_FROM)
            write_triggers(tmp_path / f"triggers{number}", poisoned, MADE_FROM)
            hand.append(bytes_of(tmp_path / f"training{number}"))
            triggers.append(bytes_of(tmp_path / f"triggers{number}"))
        assert hand[0] == hand[1]
        assert triggers[0] != triggers[1]
        assert triggers[0] != triggers[2]
        # What training reads is in there, where there is a hand in training.
        assert (hand[0] != hand[2]) == bool(policy)

    @pytest.mark.parametrize("policy", [LATE, ANEW], ids=["after augmentation", "anew in each epoch"])
    def test_the_patches_shown_at_the_test_leave_it_as_it_is(
        self, train: ImageSet, tmp_path: Path, policy: dict[str, Any]
    ) -> None:
        poisoned = made(train, "adaptive_patch", {"size": 5}, **policy)
        trigger: Any = poisoned.triggers[0]
        others = replace(trigger, test_opacity=1 - trigger.test_opacity)
        for name, one in (("first", poisoned), ("second", replace(poisoned, triggers=(others,)))):
            write_training(tmp_path / name, one, MADE_FROM)
            write_triggers(tmp_path / f"{name} whole", one, MADE_FROM)
        assert bytes_of(tmp_path / "first") == bytes_of(tmp_path / "second")
        assert bytes_of(tmp_path / "first whole") != bytes_of(tmp_path / "second whole")

    def test_nothing_is_kept_for_who_has_no_hand_in_training(self, train: ImageSet, tmp_path: Path) -> None:
        write_training(tmp_path / "nobody", None, MADE_FROM)
        write_training(tmp_path / "once", made(train, "badnets"), MADE_FROM)
        assert set(bytes_of(tmp_path / "nobody")) == {attacker_.DESCRIPTION}
        assert bytes_of(tmp_path / "once") == bytes_of(tmp_path / "nobody")

        def not_called() -> Restore:
            raise AssertionError("every attack would be imported for nothing")

        assert read_training(tmp_path / "once", not_called) is None

    @pytest.mark.parametrize("kind", ["late", "anew", "several"])
    def test_stamps_and_relabels_as_before_the_disk(self, train: ImageSet, tmp_path: Path, kind: str) -> None:
        poisoned = {
            "late": lambda: made(train, "sig", {"test_delta": 60.0}, poison_first=False, target=4),
            "anew": lambda: made(train, "blended", {"test_ratio": 0.5}, random_poisoning=True),
            "several": lambda: two_triggers(train, poison_first=False),
        }[kind]()
        write_training(tmp_path / "training", poisoned, MADE_FROM)
        kept = read_training(tmp_path / "training", lambda: restored)
        assert kept is not None
        assert kept.truth.in_training
        assert kept.truth.names == poisoned.truth.names
        assert [part.policy for part in kept.truth.parts] == [part.policy for part in poisoned.truth.parts]
        hands = [Stamping(one, train, seed=3) for one in (poisoned, kept)]
        assert hands[0].after_augmentation == hands[1].after_augmentation == (kind != "anew")
        labels, samples = torch.from_numpy(train.labels), torch.arange(len(train))
        clean = train.tensor() / 255
        for epoch in (0, 1):
            (images, given), (again, given_again) = (
                hand.stamp(clean.clone(), labels, samples, epoch) for hand in hands
            )
            assert torch.equal(images, again)
            assert torch.equal(given, given_again)
            assert not torch.equal(images, clean)
            assert not torch.equal(given, labels) or kind == "late"  # clean labels stay
        for trigger in kept.triggers:
            if trigger.of_the_test:
                with pytest.raises(ValueError, match="not kept"):
                    stamp(trigger, train.gather(np.arange(2)), np.arange(2), train=False)


class TestTriggers:
    @pytest.mark.parametrize("several", [False, True])
    def test_come_back_whole_with_their_policies(
        self, train: ImageSet, test: ImageSet, tmp_path: Path, several: bool
    ) -> None:
        poisoned = two_triggers(train) if several else made(train, "sig", {"test_delta": 60.0}, target=3)
        write_triggers(tmp_path / "triggers", poisoned, MADE_FROM)
        held, made_from = read_triggers(tmp_path / "triggers", restored)
        assert made_from == MADE_FROM
        assert list(held) == (["0_badnets", "1_blended"] if several else ["sig"])
        assert [one.policy for one in held.values()] == [part.policy for part in poisoned.truth.parts]
        keys: IntArray = np.arange(len(test))
        for one, trigger in zip(held.values(), poisoned.triggers, strict=True):
            for images, at_the_test in ((train, False), (test, True)):
                clean, rows = images.gather(keys), keys
                expected = stamp(trigger, clean, rows, train=not at_the_test)
                assert (stamp(one.trigger, clean, rows, train=not at_the_test) == expected).all()

    def test_are_of_one_poisoned_set(self, train: ImageSet, tmp_path: Path) -> None:
        write_triggers(tmp_path / "triggers", made(train, "badnets"), MADE_FROM)
        assert is_made_from(tmp_path / "triggers", attacker_.DESCRIPTION, **MADE_FROM)
        assert not is_made_from(tmp_path / "triggers", attacker_.DESCRIPTION, poisoned="another")
        assert not is_made_from(tmp_path / "triggers", attacker_.DESCRIPTION, backdoored="0123abcd")
        assert not is_made_from(tmp_path / "nowhere", attacker_.DESCRIPTION, **MADE_FROM)


class TestTruth:
    def test_comes_back(self, train: ImageSet, tmp_path: Path) -> None:
        truth = made(train, "badnets", {"size": 2}, target=2, cover_ratio=0.5).truth
        write_truth(tmp_path / "truth", truth, MADE_FROM)
        back = read_truth(tmp_path / "truth")
        assert back is not None
        assert is_made_from(tmp_path / "truth", truth_.DESCRIPTION, **MADE_FROM)
        assert (back.mask == truth.mask).all()
        assert (back.part == truth.part).all()
        assert (back.labels == train.labels).all()
        assert back.parts == truth.parts
        assert back.names == ["badnets"]
        # Three tenths of 180 candidates, and half as many covers.
        assert (back.mask.sum(), back.cover.sum()) == (54, 27)
        assert not (back.mask & back.cover).any()
        given = back.labels_given(len(CLASSES))
        assert (given[back.mask] == 2).all()
        assert (given[~back.mask] == train.labels[~back.mask]).all()

    def test_of_several_triggers(self, train: ImageSet, tmp_path: Path) -> None:
        truth = two_triggers(train).truth
        write_truth(tmp_path / "truth", truth)
        back = read_truth(tmp_path / "truth")
        assert back is not None
        assert back.names == ["0_badnets", "1_blended"]
        assert back.parts == truth.parts
        assert set(back.labels_given(len(CLASSES))[back.mask & (back.part == 1)]) == {2}


def test_data_of_unknown_origin(base: Path, test: ImageSet, tmp_path: Path) -> None:
    write_triggers(tmp_path / "triggers", None, MADE_FROM)
    write_training(tmp_path / "training", None, MADE_FROM)
    write_truth(tmp_path / "truth", None, MADE_FROM)
    held, made_from = read_triggers(tmp_path / "triggers", restored)
    assert (held, made_from) == ({}, MADE_FROM)
    assert write_triggered(tmp_path / "triggered", test, held, made_from) == {}
    assert read_triggered(tmp_path / "triggered", base) == {}
    assert read_training(tmp_path / "training", lambda: restored) is None
    assert read_truth(tmp_path / "truth") is None
    assert is_made_from(tmp_path / "triggered", triggered_.DESCRIPTION, **MADE_FROM)
    assert is_made_from(tmp_path / "truth", truth_.DESCRIPTION, **MADE_FROM)


@pytest.fixture(scope="module")
def artefacts(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """One of each, of an attack that stamps in training."""
    folder = tmp_path_factory.mktemp("artefacts")
    poisoned = made(open_split(base, "train"), "blended", poison_first=False)
    write_triggers(folder / "triggers", poisoned, MADE_FROM)
    write_training(folder / "training", poisoned, MADE_FROM)
    write_truth(folder / "truth", poisoned.truth)
    write_triggered(
        folder / "triggered", open_split(base, "test"), read_triggers(folder / "triggers", restored)[0], MADE_FROM
    )
    return folder


@pytest.fixture
def damaged(artefacts: Path) -> Iterator[Callable[[str], None]]:
    """Damages a file of the artefacts, which is whole again after the test."""
    whole: dict[Path, bytes] = {}

    def damage(name: str) -> None:
        path = artefacts / name
        whole[path] = path.read_bytes()
        path.write_bytes(whole[path][:-7] + b"x")

    yield damage
    for path, content in whole.items():
        path.write_bytes(content)


@pytest.mark.parametrize(
    ("file", "message"),
    [
        ("triggers/attacker.json", "not readable as JSON"),
        ("triggers/blended/trigger.json", "not readable as JSON"),
        ("triggers/blended/trigger.npz", "digest mismatch"),
        ("training/mask.npy", "digest mismatch"),
        ("training/part.npy", "digest mismatch"),
        ("training/labels.npy", "digest mismatch"),
        ("training/blended/trigger.npz", "digest mismatch"),
        ("truth/truth.json", "not readable as JSON"),
        ("truth/part.npy", "digest mismatch"),
        ("triggered/triggered.json", "not readable as JSON"),
        ("triggered/blended/index.npy", "digest mismatch"),
        ("triggered/blended/labels.npy", "digest mismatch"),
        ("triggered/blended/images.npy", "digest mismatch"),
    ],
)
def test_a_damaged_file_is_named_in_a_line(
    base: Path, artefacts: Path, damaged: Callable[[str], None], file: str, message: str
) -> None:
    read: dict[str, Callable[[], Any]] = {
        "triggers": lambda: read_triggers(artefacts / "triggers", restored),
        "training": lambda: read_training(artefacts / "training", lambda: restored),
        "truth": lambda: read_truth(artefacts / "truth"),
        "triggered": lambda: read_triggered(artefacts / "triggered", base),
    }
    kind = file.partition("/")[0]
    assert read[kind]()
    damaged(file)
    with pytest.raises(UserError, match=rf"^{artefacts / file}: {message}[^\n]+$"):
        read[kind]()


@pytest.mark.parametrize("kind", ["triggers", "training", "truth", "triggered"])
def test_another_artefact_in_its_place_is_refused(base: Path, artefacts: Path, tmp_path: Path, kind: str) -> None:
    read: dict[str, tuple[str, Callable[[Path], Any]]] = {
        "triggers": (attacker_.DESCRIPTION, lambda folder: read_triggers(folder, restored)),
        "training": (attacker_.DESCRIPTION, lambda folder: read_training(folder, lambda: restored)),
        "truth": (truth_.DESCRIPTION, read_truth),
        "triggered": (triggered_.DESCRIPTION, lambda folder: read_triggered(folder, base)),
    }
    name, load = read[kind]
    with pytest.raises(UserError, match=rf"{name}: no such file"):
        load(tmp_path)
    (tmp_path / name).write_text('{"format": "unpoison-truth-1"}')
    with pytest.raises(UserError, match=rf"{name}: format 'unpoison-truth-1' found, allowed: 'unpoison-"):
        load(tmp_path)


def test_the_keepsake_is_not_the_hand_in_training(artefacts: Path) -> None:
    with pytest.raises(UserError, match=r"attacker\.json: format 'unpoison-triggers-1' found"):
        read_training(artefacts / "triggers", lambda: restored)
    with pytest.raises(UserError, match=r"attacker\.json: format 'unpoison-attacker-1' found"):
        read_triggers(artefacts / "training", restored)
