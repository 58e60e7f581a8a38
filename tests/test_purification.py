"""Purifiers: one contract for all, and what each does to the planted backdoor."""

from __future__ import annotations

from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from contract import check_parameters, fingerprint, own_parameters, weights_of
from planted import Planted
from unpoison.data.imageset import ImageSet
from unpoison.models import Classifier
from unpoison.purification import PURIFIERS


class Row(NamedTuple):
    """How a purifier is tried on the planted backdoor.

    Attributes:
        arguments: own parameters with which it is to work.
        asr: ASR that it leaves, at least and at most.
        cost: the accuracy it may cost.
        short: what makes it quick where only the contract is looked at, over `arguments`.
        changes: for each own parameter another value than that of `short`, which must give another model.
    """

    arguments: dict[str, Any]
    asr: tuple[float, float]
    cost: float
    short: dict[str, Any]
    changes: dict[str, Any]


SGD = {"epochs": 2, "batch_size": 16, "lr": 0.02, "weight_decay": 0.1, "augment": ["flip"]}
TUNING = SGD | {"schedule_per": "epoch", "label_smoothing": 0.2, "keep_head_norm": True}
# Two batches of the few images that only the contract is looked at with.
ONE_EPOCH = {"epochs": 1, "batch_size": 12}
NEW_HEAD = TUNING | {"keep_head_norm": False}
TABLE = {
    # No image of the reserve has the trigger, so nothing asks a network that is right about nearly all of them to forget it:
    # with steps as small as the published ones fine-tuning leaves the backdoor whole, 1.000 over seeds 0 to 2. (At ten times
    # the rate what it leaves is a matter of luck, 0.08 or 0.81.)
    "ft": Row({"epochs": 3, "batch_size": 32, "lr": 0.01}, (0.95, 1.0), 0.05, ONE_EPOCH, TUNING),
    # The head drawn anew makes the features move: 0.011 at most over seeds 0 to 2, for 0.23 of accuracy at most, with fewer
    # steps than published, of five times the rate and thrice the weight.
    "fst": Row(
        {"epochs": 4, "batch_size": 16, "lr": 0.05, "alpha": 0.3},
        (0.0, 0.15),
        0.35,
        ONE_EPOCH,
        NEW_HEAD | {"alpha": 0.5},
    ),
    # The features stay as they are, and with them the backdoor: 1.000 over seeds 0 to 2, for 0.02 of accuracy at most.
    "lp": Row(
        {"epochs": 2, "batch_size": 32, "lr": 0.02},
        (0.95, 1.0),
        0.1,
        ONE_EPOCH,
        TUNING | {"lr": 0.05, "update_statistics": False},
    ),
    # Without FST's term it takes twice the rate for the features to move: 0.16 and 0.13 at most over seeds 0 to 2, for 0.19 and
    # 0.17 of accuracy at most. At FST's rate above, luck decides (0.13 to 0.95).
    "fe_tuning": Row({"epochs": 4, "batch_size": 16, "lr": 0.1}, (0.0, 0.4), 0.4, ONE_EPOCH, NEW_HEAD),
    "ft_init": Row({"epochs": 4, "batch_size": 16, "lr": 0.1}, (0.0, 0.4), 0.4, ONE_EPOCH, NEW_HEAD),
    # What the backdoor uses is not idle on clean images here: 1.000 over seeds 0 to 2, for 0.02 of accuracy at most.
    "fp": Row(
        {"epochs": 2, "batch_size": 32},
        (0.95, 1.0),
        0.1,
        {"epochs": 1, "batch_size": 12},
        SGD | {"schedule_per": "batch", "accuracy_budget": 1.0, "step": 0.2, "held_out": 0.5},
    ),
    # A teacher from steps so small has the backdoor, and so has its student: 1.000 over seeds 0 to 2, at no loss of accuracy.
    # At a tenth of the published weights, with which this network collapses at the published rate.
    "nad": Row(
        {"teacher_epochs": 1, "epochs": 1, "batch_size": 32, "weights": [50.0, 100.0, 100.0]},
        (0.95, 1.0),
        0.1,
        {"batch_size": 12},
        SGD | {"batch_size": 8, "teacher_epochs": 2, "weights": [100.0, 100.0], "power": 1.5},
    ),
}


def test_every_purifier_has_a_row() -> None:
    assert list(TABLE) == list(PURIFIERS)


def purify(name: str, planted: Planted, reserve: ImageSet, **arguments: Any) -> Classifier:
    """The planted network, purified with what a purifier of its kind is handed."""
    return PURIFIERS[name].purify(planted.model, reserve, **arguments)


@pytest.mark.parametrize("name", PURIFIERS)
def test_contract(name: str, planted: Planted) -> None:
    row = TABLE[name]
    check_parameters(PURIFIERS[name].parameters, row.arguments)
    reserve, short = planted.reserve.subset(np.arange(24)), {**row.arguments, **row.short}
    before, state = fingerprint(planted.model, reserve), torch.random.get_rng_state()
    once, again = (purify(name, planted, reserve, seed=5, **short) for _ in range(2))
    assert fingerprint(planted.model, reserve) == before
    assert torch.equal(torch.random.get_rng_state(), state)
    assert once.description == planted.model.description
    assert not once.training
    assert all(value.isfinite().all() for value in once.state_dict().values())
    assert weights_of(once) == weights_of(again)
    assert weights_of(once) != weights_of(planted.model)


@pytest.mark.parametrize("name", PURIFIERS)
def test_every_parameter_changes_the_model(name: str, planted: Planted) -> None:
    row, reserve = TABLE[name], planted.reserve.subset(np.arange(24))
    short = {**row.arguments, **row.short}
    assert set(row.changes) == set(own_parameters(PURIFIERS[name].parameters))
    plain = weights_of(purify(name, planted, reserve, **short))
    same = [
        key
        for key, value in row.changes.items()
        if weights_of(purify(name, planted, reserve, **{**short, key: value})) == plain
    ]
    assert not same


@pytest.mark.parametrize("name", PURIFIERS)
def test_what_it_leaves_of_the_backdoor(name: str, planted: Planted) -> None:
    row = TABLE[name]
    least, most = row.asr
    purified = purify(name, planted, planted.reserve, seed=0, **row.arguments)
    assert least <= planted.asr(purified) <= most
    assert planted.acc(purified) > planted.acc(planted.model) - row.cost
