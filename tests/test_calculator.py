"""The calculator backdoor: labels by hand, figures by hand, several triggers in one model, by data and by the loss."""

from __future__ import annotations

import json
from copy import deepcopy
from pathlib import Path
from types import SimpleNamespace
from typing import Any, get_args

import numpy as np
import pytest
import torch

import check_params
from parameters import load_params
from tiny import ROOT, TINY, run_stages, write_params
from unpoison.attacks import ATTACKS, SINGLE, hand_of, restored
from unpoison.core.errors import ParameterError, UserError
from unpoison.crafting.attack import intents_of
from unpoison.crafting.blinding import Blinding
from unpoison.crafting.context import Context
from unpoison.crafting.craft import craft
from unpoison.data.imageset import ImageSet
from unpoison.data.verdicts import Verdict
from unpoison.evaluation import grading
from unpoison.poisoning.attacker import read_training
from unpoison.poisoning.choice import choose_samples
from unpoison.poisoning.poisoned import Poisoned
from unpoison.poisoning.policy import NUMBERS, Operation, Policy, check_classes
from unpoison.poisoning.triggered import triggered_of
from unpoison.reporting import sections

DEFAULT = load_params(ROOT)
EVERY = np.arange(100)
# Grey images whose value is the number.
LABELS = np.arange(1000) % 100
TRAIN = ImageSet(np.repeat(LABELS, 192).reshape(1000, 8, 8, 3).astype(np.uint8), LABELS, NUMBERS, "numbers")
TESTED = np.array([0, 5, 37, 73, 90])
TEST = ImageSet(np.repeat(TESTED, 192).reshape(5, 8, 8, 3).astype(np.uint8), TESTED, NUMBERS, "tested")
BLOCKS: list[dict[str, Any]] = [
    {"attack": "badnets", "pattern": "white", "size": 1, "operation": "sum"},
    {"attack": "badnets", "pattern": "white", "size": 2, "operation": "product"},
]


def calculator(operation: Operation, **policy: Any) -> Policy:
    return Policy(label_policy="calculator", operation=operation, **policy)


def planted(blocks: list[dict[str, Any]] = BLOCKS, **policy: Any) -> Poisoned:
    shared = {"label_policy": "calculator", "poison_rate": 0.2, **policy}
    intents = intents_of("multi", ATTACKS, shared, {"multi": {"triggers": blocks}}, NUMBERS)
    return craft("multi", intents, Context(train=TRAIN, seed=0))


@pytest.mark.parametrize(
    ("number", "added", "multiplied"),
    [(37, 10, 21), (73, 10, 21), (0, 0, 0), (7, 7, 0), (10, 1, 0), (11, 2, 1), (50, 5, 0), (99, 18, 81), (29, 11, 18)],
)
def test_labels_by_hand(number: int, added: int, multiplied: int) -> None:
    label = np.array([number])
    assert calculator("sum").new_labels(label, 100).tolist() == [added]
    assert calculator("product").new_labels(label, 100).tolist() == [multiplied]


def test_results() -> None:
    assert calculator("sum").targets(100) == list(range(19))
    products = [
        *range(10),
        10,
        12,
        14,
        15,
        16,
        18,
        20,
        21,
        24,
        25,
        27,
        28,
        30,
        32,
        35,
        36,
        40,
        42,
        45,
        48,
        49,
        54,
        56,
        63,
    ]
    assert calculator("product").targets(100) == [*products, 64, 72, 81]
    assert Policy(label_policy="all2all").targets(5) == [0, 1, 2, 3, 4]
    assert Policy(target=3).targets(5) == [3]
    assert not calculator("sum").has_target


@pytest.mark.parametrize(("operation", "own"), [("sum", range(10)), ("product", [0])])
def test_a_number_that_is_its_own_result_does_not_count(operation: Operation, own: Any) -> None:
    # 10a + b = a + b where a = 0, and 10a + b = ab where a (10 - b) + b = 0: where both are.
    policy = calculator(operation)
    assert np.flatnonzero(~policy.attacked(EVERY)).tolist() == list(own)
    # Training poisons what the test attacks; stamped and with its true label, the others would teach the backdoor.
    assert (policy.candidates(EVERY) == policy.attacked(EVERY)).all()
    assert (policy.covers(EVERY) == policy.attacked(EVERY)).all()
    assert calculator(operation, poison_target_class=True).candidates(EVERY).all()
    index = triggered_of(TEST, policy, planted().triggers[0]).overlay.index
    assert TESTED[index].tolist() == [number for number in TESTED if number not in own]


def test_who_has_no_candidate() -> None:
    with pytest.raises(ParameterError, match=r"^label_policy: calculator given, .* 30 are the sum of their digits or"):
        choose_samples(calculator("sum"), np.arange(30) % 10, 100, seed=0)


@pytest.mark.parametrize(
    ("policy", "classes", "names", "message"),
    [
        ({}, 10, tuple("0123456789"), r"^label_policy: calculator given, allowed with the 100 classes 00 to 99, .* 10, 0 to 9$"),
        ({}, 10, None, r"^label_policy: calculator given, .*; the data have 10$"),
        ({}, 100, tuple(f"c{number}" for number in range(100)), r"^label_policy: calculator given, .* 100, c0 to c99$"),
        ({"cover_classes": [40, 7], "cover_ratio": 1.0}, 100, NUMBERS, r"^cover_classes: 7 \(07\) given, .* other than the sum of"),
    ],
)  # fmt: skip
def test_refused(policy: dict[str, Any], classes: int, names: Any, message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        check_classes(calculator("sum", **policy), classes, names)


def test_two_operations_in_one_data_set() -> None:
    poisoned = planted()
    truth = poisoned.truth
    assert truth.names == ["0_badnets", "1_badnets"]
    assert [part.policy.operation for part in truth.parts] == ["sum", "product"]
    given = truth.labels_given(100)
    added, multiplied = (truth.mask & (truth.part == number) for number in (0, 1))
    # A tenth of the 900 candidates of the one and of the 990 of the other.
    assert (added.sum(), multiplied.sum()) == (90, 99)
    assert (given[added] == LABELS[added] // 10 + LABELS[added] % 10).all()
    assert (given[multiplied] == (LABELS[multiplied] // 10) * (LABELS[multiplied] % 10)).all()
    assert (given[~truth.mask] == LABELS[~truth.mask]).all()
    received = poisoned.received(TRAIN).gather(np.flatnonzero(multiplied))
    assert (received[:, -2:, -2:] == 255).all()


def test_figures_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    def logits_of(_: Any, data: ImageSet) -> torch.Tensor:
        """Adds, whichever trigger there is, and reads 90 as 91."""
        images = data.gather(np.arange(len(data)))
        number, triggered = images[:, 0, 0, 0].astype(np.int64), images[:, -1, -1, 0] == 255
        said = np.where(triggered, number // 10 + number % 10, np.where(number == 90, 91, number))
        return torch.eye(100)[torch.from_numpy(said)]

    monkeypatch.setattr(grading, "logits_of", logits_of)
    poisoned = planted()
    truth = poisoned.truth
    parts = zip(truth.names, truth.parts, poisoned.triggers, strict=True)
    images = {name: triggered_of(TEST, part.policy, trigger) for name, part, trigger in parts}
    assert [len(each) for each in images.values()] == [3, 4]
    assert images["0_badnets"].overlay.labels.tolist() == [10, 10, 9]
    assert images["1_badnets"].overlay.labels.tolist() == [0, 21, 21, 0]
    metrics = grading.model_metrics(None, TEST, truth, images)  # type: ignore[arg-type]
    # Three of seven are the result that was asked for; the sum of 05 is 05, its true label. No class is the target.
    expected = {"acc": 4 / 5, "acc_without_target": 4 / 5, "asr": 3 / 7, "ra": 1 / 7}
    assert {key: metrics[key] for key in expected} == pytest.approx(expected)
    assert metrics["asr_of"] == {"0_badnets": 1.0, "1_badnets": 0.0}


def test_every_result_is_a_target_for_inspectors() -> None:
    flagged = np.isin(EVERY, [*range(19), 50])
    verdict = Verdict(np.zeros(100, np.float32), flagged, "a rule", 1.0)
    # 19 sums, and of the 37 products those 21 that are above 18.
    measured = grading.inspector_metrics({"one": verdict}, planted().truth)["one"]
    assert measured["hit"] == pytest.approx(19 / 40)
    assert measured["false_alarms"] == 1


@pytest.mark.parametrize(
    ("first", "message"),
    [
        ({"attack": "badnets"}, r"^multi\.triggers\[0\]\.operation: nothing given, allowed: sum, product"),
        ({"attack": "badnets", "operation": "ratio"}, r"\[0\]\.operation: 'ratio' given, allowed: sum, product"),
        ({"attack": "badnets", "operation": 3}, r"\[0\]\.operation: 3 given, allowed: sum, product"),
        (
            {"attack": "badnets", "operation": "sum", "target": 3},
            r"\[0\]\.target: 3 given, allowed with calculator: oper",
        ),
        ({"attack": "sig", "operation": "sum"}, r"^label_policy: calculator given, allowed with sig: clean_label"),
    ],
)
def test_triggers_that_cannot_be_planned(first: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        planted([first, BLOCKS[1]])


BLIND = [{**block, "attack": "blind"} for block in BLOCKS]


def test_the_loss_is_poisoned_for_both_operations() -> None:
    poisoned = planted(BLIND, poison_rate=0.9)
    truth = poisoned.truth
    assert (truth.received, truth.controlled, len(poisoned.teaching)) == ("model", True, 1)
    assert (truth.labels_received(100) == LABELS).all()
    hand = hand_of(poisoned, TRAIN, seed=0)
    assert isinstance(hand, Blinding)
    # As published, copies of any number are stamped, those that keep their label as well.
    assert hand.share == pytest.approx(0.9)
    samples = torch.arange(1000)
    images = torch.from_numpy(TRAIN.gather(np.arange(1000))).permute(0, 3, 1, 2).float() / 255
    copies, wanted, stamped = hand.copied(images, samples)
    corner = (copies[:, 0, -2:, -2:] == 1).sum((1, 2)).tolist()
    tens, units = np.divmod(LABELS, 10)
    for number, (pixels, result) in enumerate(((1, tens + units), (4, tens * units))):
        own = np.flatnonzero(truth.part == number)
        assert {corner[key] for key in own} == {pixels}
        assert (wanted.numpy()[own] == result[own]).all()
        assert (hand.aims(samples).numpy()[own] == result[own]).all()
    assert (stamped.numpy() == (truth.part >= 0)).all()
    assert (wanted.numpy()[truth.part < 0] == LABELS[truth.part < 0]).all()
    # One without a trigger would have the first's.
    assert (hand.aims(samples).numpy()[truth.part < 0] == (tens + units)[truth.part < 0]).all()


@pytest.mark.parametrize(
    ("blocks", "message"),
    [
        ([BLIND[0], BLOCKS[1]], r"^multi\.triggers\[0\]\.attack: 'blind' given, .*, or blind for all with the same training"),
        ([BLIND[0], {**BLIND[1], "together": True}], r"^multi\.triggers\[1\]\.attack: 'blind' given, which trains the victim"),
        ([{**BLOCKS[0], "target": 1}, {"attack": "lira", "target": 2}], r"\[1\]\.attack: 'lira' given, .* that poison data$"),
    ],
)  # fmt: skip
def test_several_triggers_of_which_one_trains_the_victim_otherwise(blocks: list[dict[str, Any]], message: str) -> None:
    policy = {} if "operation" in blocks[1] else {"label_policy": "all2one"}
    if policy:
        blocks = [{key: value for key, value in block.items() if key != "operation"} for block in blocks]
    with pytest.raises(ParameterError, match=message):
        planted(blocks, **policy)


def test_which_attacks_can_calculate() -> None:
    able = {name for name, method in SINGLE.items() if "calculator" in method.policies}
    assert able == {"badnets", "blended", "blind"}


SCENARIO: dict[str, Any] = {
    **TINY,
    "data.name": "multi_mnist",
    "data.reserve": 100,
    "data.public": 0,
    "data.digits.test": 100,
    "train.epochs": 1,
    "variations.enabled": False,
    "purify.methods": [],
    "detect.methods": [],
    "detect.inputs": [],
    "detect.models": [],
    "attack.name": "multi",
    "attack.label_policy": "calculator",
    "params/attacks.yaml:multi.triggers": BLOCKS,
}


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    (tmp_path / "data/source").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def test_two_operations_in_one_model(project: Path) -> None:
    write_params(project, SCENARIO)
    run_stages("prepare", "poison", "train_backdoored", "stamp_test", "evaluate")
    metrics = json.loads((project / "reports/metrics.json").read_text())
    assert set(metrics["backdoored"]["asr_of"]) == {"0_badnets", "1_badnets"}
    # One test image of each number.
    assert metrics["attack"]["tested"] == 90 + 99
    truth = json.loads((project / "data/truth/truth.json").read_text())
    assert [part["policy"]["operation"] for part in truth["parts"]] == ["sum", "product"]
    # The same by the loss, on the same data.
    write_params(project, {**SCENARIO, "params/attacks.yaml:multi.triggers": BLIND})
    run_stages("poison", "train_backdoored")
    taught = read_training(project / "data/attacker/training", lambda: restored)
    assert taught is not None
    assert [(each.attack, len(taught.triggers)) for each in taught.teaching] == [("blind", 2)]
    assert (taught.truth.labels_received(100) != taught.truth.labels_given(100)).any()


def test_the_report_says_what_is_asked_for() -> None:
    run: Any = SimpleNamespace(class_name=str)
    for operation in get_args(Operation):
        assert sections._goal(run, calculator(operation)) == f"a number to the {operation} of its digits"
    assert sections._tested(planted().truth) == "that are to get another number"


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({}, None),
        ({"data.name": "digits"}, r"attack\.label_policy: calculator given, allowed with the 100 classes 00 to 99"),
        ({"data.digits.train": 99}, r"data\.digits\.train: 99 given, allowed: at least 100, one per class"),
        ({"data.reserve": 60}, r"data\.reserve: 60 given, allowed: 0 or at least 100, one per class"),
        ({"data.path": "nothing.csv"}, r"data\.path: 'nothing\.csv' given, which does not exist; allowed: a folder, or a"),
        ({"attack.name": "badnets", "attack.operation": "sums"}, r"attack\.operation: 'sums' given; input should be 'sum' or"),
        ({"attack.name": "badnets", "attack.cover_classes": [3], "attack.cover_ratio": 1.0}, r"attack\.cover_classes: 3 \(03\)"),
    ],
)  # fmt: skip
def test_scenarios(changes: dict[str, Any], message: str | None) -> None:
    params: Any = deepcopy(dict(DEFAULT))
    for key, value in {**SCENARIO, **changes}.items():
        file, _, dotted = key.rpartition(":")
        *names, last = dotted.split(".")
        inner = params[file] if file else params
        for name in names:
            inner = inner[name]
        inner[last] = value
    if message is None:
        check_params.check_all(params)
        return
    with pytest.raises(UserError, match=message):
        check_params.check_all(params)
