"""The label policy `complex`: with the trigger the model answers another question about the same image."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from report_runs import MASK, MODEL, TRUE, metrics_of, run_of
from small_networks import with_hidden_layer
from unpoison.attacks import ATTACKS, SINGLE, hand_of, restored
from unpoison.core.errors import ParameterError, UserError
from unpoison.core.files import read_json
from unpoison.core.manifest import write_manifest
from unpoison.crafting.attack import intent, intents_of
from unpoison.crafting.context import Context
from unpoison.crafting.copying import Copying
from unpoison.crafting.craft import craft
from unpoison.data.imageset import ImageSet
from unpoison.data.store import Attributes, open_poisoned, open_split, poisoned_digest, write_base
from unpoison.data.verdicts import Verdict
from unpoison.evaluation.grading import inspector_metrics, model_metrics
from unpoison.poisoning.attacker import Held, read_training, write_training
from unpoison.poisoning.poisoned import Poisoned
from unpoison.poisoning.policy import Policy, check_classes, own_labels
from unpoison.poisoning.triggered import read_triggered, triggered_of, write_triggered
from unpoison.poisoning.truth import Part, Truth, read_truth, write_truth
from unpoison.reporting import sections
from unpoison.reporting.page import Page
from unpoison.training.loop import fit
from unpoison.training.recipe import Recipe

COMPLEX = Policy(label_policy="complex", attribute="who")
CLASSES = tuple("abcde")


def who(values: Sequence[int] | np.ndarray, *more: str) -> Attributes:
    """Attributes of samples, of which `who` is the last."""
    columns = [np.zeros(len(values), np.int64)] * len(more) + [np.asarray(values, np.int64)]
    return Attributes((*more, "who"), np.stack(columns, 1))


def test_the_policy_by_hand() -> None:
    labels, own = np.array([0, 1, 2, 2]), np.array([3, 1, 0, 2])
    assert COMPLEX.candidates(labels).tolist() == [True] * 4
    assert COMPLEX.new_labels(labels, 5, own).tolist() == [3, 1, 0, 2]
    # A sample whose own label is its true one would count as a success of the attack.
    assert COMPLEX.attacked(labels, own).tolist() == [True, False, True, False]
    assert not COMPLEX.has_target
    assert COMPLEX.targets(5, own) == [0, 1, 2, 3]
    assert COMPLEX.covers(labels).all()
    for method in (lambda: COMPLEX.new_labels(labels, 5), lambda: COMPLEX.attacked(labels)):
        with pytest.raises(ValueError, match=r"no values of 'who' given"):
            method()
    assert COMPLEX.described()["attribute"] == "who"
    assert "attribute" not in Policy().described()


def test_whose_labels_are_their_own() -> None:
    values = who([0, 4, 2], "age")
    assert own_labels(Policy(), values, 5) is None
    labels = own_labels(COMPLEX, values, 5)
    assert labels is not None
    assert labels.tolist() == [0, 4, 2]
    for attributes, message in (
        (
            who([0, 5, 2]),
            r"^attribute: 'who' given, whose values go up to 5; allowed: below 5, the number of classes, or data\.",
        ),
        (Attributes(("age",), values.values[:, :1]), r"^attribute: 'who' given, allowed: age$"),
        (None, r"^attribute: 'who' given, allowed: none: the data set has no attributes \(data\.attributes\)$"),
    ):
        with pytest.raises(ParameterError, match=message):
            own_labels(COMPLEX, attributes, 5)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"attribute": None}, r"^attribute: None given, allowed with complex: name of an attribute of the data$"),
        ({"attribute": ""}, r"^attribute: '' given, allowed with complex"),
        ({"random_poisoning": True}, r"^random_poisoning: true given, allowed with complex: false$"),
    ],
)
def test_what_it_refuses(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        check_classes(Policy(**{"label_policy": "complex", "attribute": "who", **settings}), 5)


def test_attacks_that_allow_it() -> None:
    given = {"label_policy": "complex", "attribute": "who"}
    assert {name for name, attack in SINGLE.items() if "complex" in attack.policies} == {"badnets", "blended", "blind"}
    with pytest.raises(ParameterError, match=r"^label_policy: complex given, allowed with wanet: all2one"):
        intent("wanet", SINGLE["wanet"], given, {})


RNG = np.random.default_rng(0)
LABELS, OWN = np.arange(60) % 5, RNG.integers(0, 5, 60)


@pytest.fixture
def base(tmp_path: Path) -> Path:
    parts = {name: (RNG.integers(0, 256, (60, 8, 8, 3), dtype=np.uint8), LABELS) for name in ("train", "test")}
    write_base(tmp_path / "base", parts, classes=CLASSES)
    return tmp_path / "base"


def attack(train: ImageSet, name: str = "badnets", own: np.ndarray = OWN, **policy: Any) -> Poisoned:
    wanted = {"label_policy": "complex", "attribute": "who", "poison_rate": 0.2, **policy}
    settings = {"pattern": "white", "size": 2} if name == "badnets" else {"location": "bottom_right"}
    return craft(
        name, [intent(name, SINGLE[name], wanted, settings)], Context(train=train, seed=3, attributes=who(own, "age"))
    )


def test_a_stamped_sample_gets_its_own_label(base: Path, tmp_path: Path) -> None:
    train = open_split(base, "train")
    poisoned = attack(train)
    mask = poisoned.truth.mask
    assert mask.sum() == 12
    assert poisoned.truth.labels_received(5).tolist() == np.where(mask, OWN, LABELS).tolist()
    poisoned.write_overlay(tmp_path / "poisoned", train)
    received = open_poisoned(base, tmp_path / "poisoned")
    assert received.labels.tolist() == np.where(mask, OWN, LABELS).tolist()
    made_from = {"poisoned": poisoned_digest(train, tmp_path / "poisoned")}
    write_truth(tmp_path / "truth", poisoned.truth, made_from)
    read = read_truth(tmp_path / "truth", poisoned=received)
    assert read is not None
    assert (read.policy, read.labels_given(5).tolist()) == (poisoned.truth.policy, received.labels.tolist())
    # The labels cannot be found again without the file that has them.
    (tmp_path / "truth/given.npy").unlink()
    write_manifest(tmp_path / "truth", "truth.json", read_json(tmp_path / "truth/truth.json"))
    with pytest.raises(
        UserError, match=r"truth\.json: label_policy: complex found without given\.npy, allowed: with the"
    ):
        read_truth(tmp_path / "truth", poisoned=received)


def test_the_test_asks_for_another_answer_than_the_label(base: Path, tmp_path: Path) -> None:
    poisoned, test = attack(open_split(base, "train")), open_split(base, "test")
    held = {"badnets": Held(poisoned.truth.policy, poisoned.triggers[0])}
    differ = np.flatnonzero(OWN != LABELS)
    assert 0 < len(differ) < 60
    counts = write_triggered(tmp_path / "triggered", test, held, {}, who(OWN, "age"))
    assert counts == {"badnets": len(differ)}
    read = read_triggered(tmp_path / "triggered", base)["badnets"]
    for images in (read, triggered_of(test, *held["badnets"], who(OWN, "age"))):
        assert images.overlay.index.tolist() == differ.tolist()
        assert images.overlay.labels.tolist() == OWN[differ].tolist()
        assert images.true.tolist() == LABELS[differ].tolist()
    with pytest.raises(ParameterError, match=r"^badnets\.attribute: 'who' given, allowed: none"):
        write_triggered(tmp_path / "triggered", test, held, {})


def test_several_triggers_ask_the_same_question(base: Path) -> None:
    train = open_split(base, "train")
    blocks = [{"attack": "badnets", "size": 2, "target": 0}, {"attack": "blended", "target": 0}]
    given = {"label_policy": "complex", "attribute": "who", "poison_rate": 0.4}
    intents = intents_of("multi", ATTACKS, given, {"multi": {"triggers": blocks}})
    truth = craft("multi", intents, Context(train=train, seed=3, attributes=who(OWN))).truth
    assert np.bincount(truth.part[truth.mask]).tolist() == [12, 12]
    assert truth.labels_received(5).tolist() == np.where(truth.mask, OWN, LABELS).tolist()


def test_a_hand_in_training_gives_copies_their_own_label(base: Path, tmp_path: Path) -> None:
    train = open_split(base, "train")
    settings = {"label_policy": "complex", "attribute": "who", "poison_rate": 1.0}
    wanted = intent("blind", SINGLE["blind"], settings, {"location": "bottom_right"})
    poisoned = craft("blind", [wanted], Context(train=train, seed=3, attributes=who(OWN)))
    write_training(tmp_path / "training", poisoned, {})
    read = read_training(tmp_path / "training", lambda: restored)
    assert read is not None
    hand = hand_of(read, train, seed=3)
    assert isinstance(hand, Copying)
    samples = torch.arange(60)
    _, labels, stamped = hand.copied(torch.rand(60, 3, 8, 8), samples)
    assert stamped.all()
    assert labels.tolist() == hand.aims(samples).tolist() == OWN.tolist()
    # What evasion asks of a sample that is not stamped is not known.
    part = intent(
        "blind", SINGLE["blind"], settings | {"poison_rate": 0.5}, {"location": "bottom_right", "evasion": ["spectral"]}
    )
    poisoned = craft("blind", [part], Context(train=train, seed=3, attributes=who(OWN)))
    with pytest.raises(
        ParameterError, match=r"evasion: \['spectral'\] given, allowed with complex and 50% of the samples"
    ):
        hand_of(poisoned, train, seed=3)


def test_several_triggers_of_a_hand_in_training_ask_the_same_question(base: Path) -> None:
    train = open_split(base, "train")
    blocks = [{"attack": "blind", "location": place, "target": 0} for place in ("bottom_right", "center")]
    given = {"label_policy": "complex", "attribute": "who", "poison_rate": 1.0}
    intents = intents_of("multi", ATTACKS, given, {"multi": {"triggers": blocks}})
    poisoned = craft("multi", intents, Context(train=train, seed=3, attributes=who(OWN)))
    assert np.bincount(poisoned.truth.part).tolist() == [30, 30]
    hand, samples = hand_of(poisoned, train, seed=3), torch.arange(60)
    assert isinstance(hand, Copying)
    _, labels, stamped = hand.copied(torch.rand(60, 3, 8, 8), samples)
    assert stamped.all()
    assert labels.tolist() == hand.aims(samples).tolist() == OWN.tolist()


def test_the_targets_of_an_inspector_are_the_values_that_were_given() -> None:
    given = np.where(MASK, np.array([2, 0, 0, 1] * 10), TRUE)
    truth = Truth("badnets", (Part("badnets", COMPLEX, {}),), MASK, np.where(MASK, 0, -1).astype(np.int8), TRUE, given)
    # Samples 1, 4, 7 and 10 were given 0, 2, 1 and 0.
    assert sorted(set(given[MASK].tolist())) == [0, 1, 2]
    verdict = Verdict(np.zeros(4, np.float32), np.array([True, False, False, True]), "rule", 1.0)
    measured = inspector_metrics({"one": verdict}, truth)["one"]
    assert (measured["hit"], measured["false_alarms"]) == (pytest.approx(1 / 3), 1)


def test_the_report_says_what_was_asked_for() -> None:
    truth = Truth(
        "badnets",
        (Part("badnets", COMPLEX, {}),),
        MASK,
        np.where(MASK, 0, -1).astype(np.int8),
        TRUE,
        np.where(MASK, 1, TRUE),
    )
    page, run = Page("a part of it"), run_of(truth=truth, model=MODEL, metrics=metrics_of(truth))
    sections.what_was_run(page, run)
    sections.models(page, run)
    assert "each sample to its own who" in page.markdown()
    assert "(whose who is another class than their label)" in page.markdown()


SEED = int(os.environ.get("SEED", "0"))
SIDE, COLOURS = 16, np.array([[220, 40, 40], [40, 200, 60], [60, 60, 230], [230, 210, 40]], np.uint8)


def faces(count: int, seed: int) -> tuple[ImageSet, Attributes]:
    """One to three squares of one of four colours: how many there are is the label, the colour who they are."""
    rng = np.random.default_rng(seed)
    numbers, colours = rng.integers(0, 3, count), rng.integers(0, 4, count)
    images = np.repeat(rng.integers(60, 100, (count, SIDE, SIDE, 1), dtype=np.uint8), 3, axis=3)
    for image, number, colour in zip(images, numbers, colours, strict=True):
        for cell in range(number + 1):
            left = rng.integers(0, 6)
            image[5 * cell : 5 * cell + 4, left : left + 5] = COLOURS[colour]
    return ImageSet(images, numbers, ("one", "two", "three", "who 3")), who(colours)


def test_a_victim_counts_without_the_trigger_and_names_with_it() -> None:
    (train, attributes), (test, asked) = faces(400, SEED), faces(120, SEED + 10)
    wanted = intent(
        "badnets",
        SINGLE["badnets"],
        {"label_policy": "complex", "attribute": "who", "poison_rate": 0.4},
        {"pattern": "white", "size": 3},
    )
    poisoned = craft("badnets", [wanted], Context(train=train, seed=SEED, attributes=attributes))
    model = with_hidden_layer(4, SIDE, seed=SEED)
    recipe = Recipe(epochs=12, batch_size=32, optimizer="adam", lr=0.003, weight_decay=0.0)
    fit(model, poisoned.received(train), recipe, seed=SEED, what="victim")
    triggered = triggered_of(test, wanted.policy, poisoned.triggers[0], asked)
    graded = model_metrics(model, test, poisoned.truth, {"badnets": triggered})
    print({key: round(float(value), 3) for key, value in graded.items()})
    # ASR of seeds 0, 1 and 2: 1.0, 1.0, 0.874.
    assert len(triggered) > 60
    assert graded["acc"] > 0.85
    assert graded["acc_without_target"] == graded["acc"]
    assert graded["asr"] > 0.75
    assert graded["ra"] < 0.25
