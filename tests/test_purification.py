"""Purifiers: one contract for all, and what each does to the planted backdoor."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import replace
from functools import cache
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch

from contract import check_parameters, fingerprint, own_parameters, weights_of
from planted import Planted
from unpoison import models
from unpoison.data.imageset import ImageSet
from unpoison.data.scores import Scored
from unpoison.data.verdicts import Verdict
from unpoison.models import Classifier
from unpoison.purification import PURIFIERS
from unpoison.training.loop import fit
from unpoison.training.recipe import Recipe


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
SCHEDULED = SGD | {"schedule_per": "epoch"}
TUNING = SCHEDULED | {"label_smoothing": 0.2, "keep_head_norm": True}
# Two batches of the few images that only the contract is looked at with.
ONE_EPOCH = {"epochs": 1, "batch_size": 12}
NEW_HEAD = TUNING | {"keep_head_norm": False}
INVERTING = {
    "rounds": 1,
    "pretrain_epochs": 1,
    "mask_epochs": 1,
    "generator_epochs": 1,
    "width": 1,
    "mask_lr": 0.2,
    "generator_lr": 0.02,
    "image_bound": 3.0,
}
# Two steps, so that momentum and the way back to the backdoored weights count.
SHORT = {"batch_size": 24, "epochs": 2, "lr": 0.01}
INVERTED = {
    "rounds": 2,
    "pretrain_epochs": 2,
    "mask_epochs": 2,
    "generator_epochs": 2,
    "epochs": 1,
    "batch_size": 16,
    "lr": 0.02,
    "inverted": 0.5,
    "width": 2,
    "mask_lr": 0.1,
    "generator_lr": 0.01,
    "image_bound": 0.0,
    "feature_bound": 0.0,
    "augment": ["flip"],
}
TABLE = {
    # No image of the reserve has the trigger, so nothing asks a network that is right about nearly all of them to forget it:
    # with steps as small as the published ones fine-tuning leaves the backdoor whole, 1.000 over seeds 0 to 2. (At ten times
    # the rate what it leaves is a matter of luck, 0.08 or 0.81.)
    "ft": Row({"epochs": 3, "batch_size": 32, "lr": 0.01}, (0.95, 1.0), 0.05, ONE_EPOCH, TUNING),
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
    # The head drawn anew makes the features move: 0.011 at most over seeds 0 to 2, for 0.23 of accuracy at most, with fewer
    # steps than published, of five times the rate and thrice the weight.
    "fst": Row(
        {"epochs": 4, "batch_size": 16, "lr": 0.05, "alpha": 0.3},
        (0.0, 0.15),
        0.35,
        ONE_EPOCH,
        NEW_HEAD | {"alpha": 0.5},
    ),
    # What the backdoor uses is not idle on clean images here: 1.000 over seeds 0 to 2, for 0.02 of accuracy at most.
    "fp": Row(
        {"epochs": 2, "batch_size": 32},
        (0.95, 1.0),
        0.1,
        {"epochs": 1, "batch_size": 12},
        SGD | {"schedule_per": "batch", "accuracy_budget": 1.0, "step": 0.4, "held_out": 0.5},
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
    # Sharpness-aware or not, few steps as small as the published ones leave the backdoor whole: 1.000 over seeds 0 to 2, for 0.02
    # of accuracy.
    "ft_sam": Row(
        {"epochs": 2, "batch_size": 32, "lr": 0.01},
        (0.95, 1.0),
        0.1,
        {"epochs": 1, "batch_size": 12},
        SCHEDULED | {"momentum": 0.5, "rho": 1.0, "adaptive": False, "label_smoothing": 0.3},
    ),
    # 0.011 at most over seeds 0 to 2, for 0.20 of accuracy at most, in 14 steps of more than twice the published rate.
    "anp": Row(
        {"iterations": 14, "batch_size": 32, "lr": 0.5, "threshold": 0.2},
        (0.0, 0.15),
        0.35,
        {"iterations": 3, "batch_size": 8, "lr": 2.0, "threshold": 0.95},
        {
            "iterations": 2,
            "batch_size": 4,
            "lr": 0.5,
            "eps": 0.1,
            "steps": 2,
            "alpha": 0.9,
            "threshold": 0.5,
            "augment": ["flip"],
        },
    ),
    # A perturbation of all images, carried by a third of a batch: 0.22 at most over seeds 0 to 2 (0.22, 0.02, 0.06), for 0.16 of
    # accuracy at most, with one round at 20 times the published rate.
    "i_bau": Row(
        {"rounds": 1, "batch_size": 32, "lr": 0.002, "share": 0.3, "iterations": 1},
        (0.0, 0.5),
        0.35,
        # The penalty's slope is 0 at the first perturbation, 0, and counts from the second iteration on by its curvature.
        {"iterations": 2},
        {
            "rounds": 2,
            "batch_size": 16,
            "lr": 0.001,
            "share": 0.6,
            "inner_lr": 5.0,
            "penalty": 1.0,
            "iterations": 1,
            "map_lr": 0.2,
            "augment": ["flip"],
        },
    ),
    # The published bound of 0.2 cannot make a checkerboard of ones and zeros: 10 passes within it leave ASR 1.000. One as wide as
    # the images' range does with one step and pass, at 30 times the rate: 0.12 at most over seeds 0 to 2 (0.06, 0.12, 0.11), for
    # 0.17 of accuracy at most.
    "sau": Row(
        {"epochs": 1, "batch_size": 16, "lr": 0.003, "bound": 1.0, "step": 1.0, "steps": 1},
        (0.0, 0.45),
        0.35,
        # Of two batches: at the first one both networks are the same, and do not diverge.
        {"batch_size": 12, "bound": 0.2, "step": 0.2},
        {
            "epochs": 2,
            "batch_size": 24,
            "lr": 0.001,
            "bound": 0.1,
            "step": 0.1,
            "steps": 2,
            "beta_1": 10.0,
            "beta_2": 0.0,
            "lambda_1": 0.5,
            "lambda_2": 1.0,
            "lambda_3": 2.0,
            "augment": ["flip"],
        },
    ),
    # 0.128 at most over seeds 0 to 2, for 0.37 of accuracy at most: few epochs at higher rates. The copy that has unlearned
    # the reserve has 0.13 to 0.29 of accuracy and an ASR of 1.000, as the paper says.
    "rnp": Row(
        {"epochs": 3, "batch_size": 32, "lr": 0.012, "mask_epochs": 2, "mask_lr": 0.4, "threshold": 0.2},
        (0.0, 0.4),
        0.55,
        {
            "epochs": 2,
            "lr": 0.01,
            "mask_epochs": 1,
            "batch_size": 24,
            "mask_lr": 20.0,
            "threshold": 0.9,
            "accuracy": 0.0,
        },
        {
            "epochs": 1,
            "batch_size": 12,
            "lr": 0.03,
            "weight_decay": 5.0,
            "accuracy": 1.0,
            "mask_epochs": 2,
            "mask_lr": 0.5,
            "alpha": 1.0,
            "threshold": 0.5,
            "augment": ["flip"],
        },
    ),
    # A handful of steps of a generator of one channel inverts nothing: what is tested is that all phases run and that their
    # images are unlearned, at rates far above the published ones, which cost accuracy. ASR 0.144 and a cost of 0.31 at most
    # over seeds 0 to 2.
    "bti_dbf": Row(INVERTING | {"lr": 0.02, "batch_size": 100, "epochs": 6}, (0.0, 0.4), 0.45, SHORT, INVERTED),
    # 0.056 and 0.26 at most over seeds 0 to 2.
    "pam": Row(
        INVERTING | {"lr": 0.2, "momentum": 0.8, "rho": 1.0, "batch_size": 50, "epochs": 4},
        (0.0, 0.3),
        0.4,
        SHORT,
        INVERTED | {"momentum": 0.1, "rho": 0.1},
    ),
    # A head drawn anew, which has to stay away from the old one: 0.13 to 0.32 over seeds 0 to 2, for 0.14 of accuracy at most, with
    # fewer steps than published, of ten times the rate.
    "d3": Row(
        {"epochs": 4, "batch_size": 16, "lr": 0.1, "weight": 2.0},
        (0.0, 0.65),
        0.3,
        {"epochs": 1},
        SCHEDULED
        | {
            "batch_size": 12,
            "momentum": 0.5,
            "weight": 5.0,
            "epsilon": 2.0,
            "start": "opposite",
            "schedule_per": "batch",
        },
    ),
    # 0.022 at most over seeds 0 to 2, for 0.17 of accuracy at most, where it is told the class. Unlearning finds it on this network
    # for some seeds only, and pushes another one away for others.
    "lmr": Row(
        {
            "target": 0,
            "epochs": 2,
            "batch_size": 32,
            "lr": 0.05,
            "recovery_epochs": 1,
        },
        (0.0, 0.2),
        0.35,
        {"target": None, "unlearn_epochs": 2, "unlearn_lr": 0.03, "epochs": 1, "batch_size": 16, "lr": 0.005},
        {
            "target": 3,
            "unlearn_epochs": 1,
            "unlearn_lr": 0.1,
            "unlearn_bound": 1e-6,
            "epochs": 2,
            "batch_size": 12,
            "lr": 0.02,
            "momentum": 0.5,
            "alpha": 0.5,
            "margin": 6.0,
            "beta": 1.0,
            "own_margin": 5.0,
            "channels": 0.2,
            "recovery_epochs": 2,
            "recovery_lr": 0.02,
            "augment": ["flip"],
        },
    ),
    # Zeros where unlearning changes the most, and few steps to mend them: 0.022 at most over seeds 0 to 2, for 0.43 of accuracy at
    # most, with fewer steps than published, of higher rates.
    "tsbd": Row(
        {"unlearn_epochs": 3, "unlearn_lr": 0.03, "neurons": 0.1, "epochs": 2, "batch_size": 16, "lr": 0.03},
        (0.0, 0.3),
        0.6,
        {"unlearn_epochs": 1, "epochs": 1},
        {
            "unlearn_epochs": 2,
            "unlearn_lr": 0.1,
            "unlearn_bound": 0.5,
            "layers": "all",
            "neurons": 0.2,
            "weights": 0.5,
            "epochs": 2,
            "batch_size": 12,
            "lr": 0.02,
            "momentum": 0.5,
            "weight_decay": 0.1,
            "radius": 0.5,
            "alpha": 0.2,
            "augment": ["flip"],
        },
    ),
    # The bound of weights alone: ASR 0.19 for 0.33 of accuracy, whatever the seed. (With the published u, which a layer of 8
    # channels cannot exceed, two channels go and the backdoor stays whole.)
    "clp": Row({"u": 2.0}, (0.0, 0.4), 0.45, {}, {"u": 1.5}),
    # ASR 0.011 for 0.12 of accuracy, whatever the seed; with the published u it stays whole.
    "bnp": Row({"u": 2.0}, (0.0, 0.15), 0.25, {}, {"u": 1.5}),
    # A few steps at 300 times the published rate: over seeds 0 to 2 ASR 0.044 at most, for 0.285 of accuracy at most.
    "dbr": Row(
        {"epochs": 1, "batch_size": 16, "lr": 0.03, "clean_share": 0.1, "poison_share": 0.025, "allowed_drop": 0.3},
        (0.0, 0.3),
        0.5,
        {"clean_share": 0.01, "poison_share": 0.005, "lr": 0.3, "allowed_drop": None},
        {"clean_share": 0.02, "poison_share": 0.01, "relearn": "both", "epochs": 2, "batch_size": 8, "lr": 0.01}
        | {"weight_decay": 0.1, "augment": ["flip"], "bound": 0.001, "allowed_drop": 0.0},
    ),
    # 0.089 at most over seeds 0 to 2, for 0.165 of accuracy at most, again at rates far above the published ones.
    "unlearn": Row(
        {"finetune_epochs": 1, "epochs": 1, "batch_size": 16, "clean_share": 0.06, "poison_share": 0.025}
        | {"relearn_lr": 0.01, "unlearn_lr": 0.05, "allowed_drop": 0.3},
        (0.0, 0.35),
        0.35,
        {"clean_share": 0.01, "poison_share": 0.005, "unlearn_lr": 0.3, "allowed_drop": None},
        {"clean_share": 0.02, "poison_share": 0.01, "finetune_epochs": 2, "epochs": 2, "batch_size": 8, "lr": 0.02}
        | {"relearn_lr": 0.02, "unlearn_lr": 0.02, "weight_decay": 0.1, "augment": ["flip"]}
        | {"bound": 0.001, "allowed_drop": 0.0},
    ),
    # The trigger is inverted as it is: 0.017 at most over seeds 0 to 2, for 0.035 of accuracy at most, in 12 steps.
    "nc_unlearn": Row(
        {"epochs": 2, "batch_size": 50, "lr": 0.03},
        (0.0, 0.15),
        0.15,
        {"epochs": 1},
        {"share": 0.5, "epochs": 2, "batch_size": 12, "lr": 0.02, "weight_decay": 0.1, "augment": ["flip"]},
    ),
}


def test_every_purifier_has_a_row() -> None:
    assert list(TABLE) == list(PURIFIERS)


class Subject(NamedTuple):
    """A network to purify, trusted images, and what purifiers may build on besides."""

    model: Classifier
    reserve: ImageSet
    scores: Scored
    verdicts: Verdict


@pytest.fixture(scope="module")
def subject(planted: Planted) -> Subject:
    """The planted backdoor."""
    return Subject(planted.model, planted.reserve, planted.scored(), planted.verdict())


@pytest.fixture(scope="module")
def small(subject: Subject, planted: Planted) -> Subject:
    """A network of seven convolutions trained on the planted set at half its size, and 24 trusted images."""

    def halved(data: ImageSet) -> ImageSet:
        return ImageSet(np.ascontiguousarray(data.gather(np.arange(len(data)))[:, ::2, ::2]), data.labels, data.classes)

    data, verdicts = halved(planted.data), subject.verdicts
    model = models.build("compact", num_classes=10, image_size=16, width=8)
    fit(model, data, Recipe(epochs=8, batch_size=32, lr=0.2), seed=0, what="small")
    aux = {"masks": verdicts.aux["masks"][:, ::2, ::2], "patterns": verdicts.aux["patterns"][:, :, ::2, ::2]}
    scores = replace(subject.scores, data=data)
    return Subject(model, halved(planted.reserve.subset(np.arange(24))), scores, replace(verdicts, aux=aux))


def purify(name: str, subject: Subject, **arguments: Any) -> Classifier:
    """The network, purified with what a purifier of its kind is handed."""
    by = PURIFIERS[name].by
    return PURIFIERS[name].purify(subject.model, subject.reserve, *([getattr(subject, by)] if by else []), **arguments)


@pytest.fixture(scope="module")
def weights(small: Subject) -> Callable[[str], bytes]:
    """The small network's weights after a purifier's row as it is, by the purifier's name."""
    return cache(lambda name: weights_of(purify(name, small, **TABLE[name].arguments | TABLE[name].short)))


@pytest.mark.parametrize("name", PURIFIERS)
def test_contract(name: str, small: Subject, weights: Callable[[str], bytes]) -> None:
    row = TABLE[name]
    check_parameters(PURIFIERS[name].parameters, row.arguments)
    before, state = fingerprint(small.model, small.reserve, small.scores.data), torch.random.get_rng_state()
    once = purify(name, small, **row.arguments | row.short)
    assert fingerprint(small.model, small.reserve, small.scores.data) == before
    assert torch.equal(torch.random.get_rng_state(), state)
    assert once.description == small.model.description
    assert not once.training
    assert all(value.isfinite().all() for value in once.state_dict().values())
    assert weights_of(once) == weights(name)
    assert weights_of(once) != weights_of(small.model)


@pytest.mark.parametrize("name", PURIFIERS)
def test_every_parameter_changes_the_model(name: str, small: Subject, weights: Callable[[str], bytes]) -> None:
    row = TABLE[name]
    short = {**row.arguments, **row.short}
    assert set(row.changes) == set(own_parameters(PURIFIERS[name].parameters))
    changed = {key: weights_of(purify(name, small, **{**short, key: value})) for key, value in row.changes.items()}
    assert [key for key, value in changed.items() if value == weights(name)] == []


@pytest.mark.parametrize("name", PURIFIERS)
def test_what_it_leaves_of_the_backdoor(name: str, subject: Subject, planted: Planted) -> None:
    row = TABLE[name]
    least, most = row.asr
    purified = purify(name, subject, seed=int(os.environ.get("SEED", "0")), **row.arguments)
    acc, asr = planted.acc(purified), planted.asr(purified)
    print(f"{name}: ACC {acc:.3f} of {planted.acc(planted.model):.3f}, ASR {asr:.3f}")
    assert least <= asr <= most
    assert acc > planted.acc(planted.model) - row.cost
