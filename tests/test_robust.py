"""Robust training: one contract for all, what a trained student owes its teacher, the distillation loss by hand."""

from __future__ import annotations

import math
import re
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from contract import check_parameters, fingerprint, weights_of
from planted import Planted
from robust_training import _keys
from small_networks import strided
from unpoison import models
from unpoison.compute.checkpoints import Checkpoints
from unpoison.compute.distributed import world
from unpoison.compute.inference import Features, frozen
from unpoison.core.errors import ParameterError, UserError
from unpoison.core.files import sha256_json
from unpoison.core.hyperparameters import check
from unpoison.data.imageset import ImageSet
from unpoison.data.scores import Scored, ends
from unpoison.detection import ac, ensemble, ss
from unpoison.robust import ROBUST, abl, asd, default_defence, dst, filter_retrain, losses, nab, pdb, vibe
from unpoison.robust.distillation import distillation_loss
from unpoison.training.hand import Hand
from unpoison.training.loop import History, fit
from unpoison.training.recipe import Recipe
from unpoison.training.shaping import Shaped

STUDENT = torch.tensor([[2.0, 0, -1], [0.5, 1.5, -0.5]])
TEACHER = torch.tensor([[1.0, 1, 0], [0, 3, -1]])
LABELS = torch.tensor([0, 1])


def fresh() -> models.Classifier:
    return strided((16, 32, 64, 128), seed=1)


def without_batch_norm() -> models.Classifier:
    return strided((16, 32, 64, 128), seed=1, norm="group")


def whole() -> models.Classifier:
    """One whose last map is one pixel, which sees all of the image."""
    return strided((16, 32, 64, 128, 128), seed=1)


class Row(NamedTuple):
    """A method's arguments in the tests, its recipe, the accuracy it must reach and the ASR it may have."""

    arguments: dict[str, Any]
    recipe: Recipe
    acc: float
    asr: float
    network: str = "prepared"


# Adam, as so few steps of SGD teach nothing to a network that starts from random weights. ACC and ASR over three seeds: of
# distillation 0.43 to 0.44 and 0.03 to 0.06; of filter_retrain 0.39 to 0.43 and 0.08 to 0.09; of abl 0.32 to 0.38 and 0.01 to
# 0.04; of dst 0.28 to 0.32 and 0.06 to 0.08; of pdb 0.29 to 0.37 and 0.01 to 0.03.
SHORT = Recipe(epochs=3, batch_size=48, lr=0.003, optimizer="adam", weight_decay=0.0)
MIXED = {"mixmatch_steps": 15, "mixmatch_batch_size": 16, "mixmatch_lr": 0.003}
# From a network that knows the task, and that plain training on the same samples teaches the trigger: from random weights most find
# too little in so short a training.
TABLE = {
    "distillation": Row({"temperature": 2.0, "alpha": 0.7}, SHORT, 0.3, 0.2),
    "filter_retrain": Row({"removed": 0.1}, SHORT, 0.3, 0.2),
    # What a network learns first shows in one that knows nothing yet.
    "abl": Row(
        {"isolation_epochs": 4, "unlearn_epochs": 6, "isolated": 0.05, "unlearn_lr": 0.0015},
        replace(SHORT, epochs=4, batch_size=32, lr=0.005),
        0.25,
        0.2,
        "fresh",
    ),
    # With labels of the samples that look clean, as few are enough: by contrast so short a training teaches little.
    "dst": Row(
        {"clean_share": 0.7, "temperature": 0.3, "crop": 0.7, "classifier_epochs": 5, "classifier_lr": 0.3},
        replace(SHORT, batch_size=128),
        0.2,
        0.2,
    ),
    "dbd": Row(
        {"extractor_epochs": 1, "crop": 0.7, "classifier_epochs": 2, **MIXED},
        replace(SHORT, epochs=2),
        0.3,
        0.2,
    ),
    "asd": Row(MIXED, replace(SHORT, epochs=4, lr=0.02), 0.3, 0.2),
    # Isolates 39 to 41 of the 41 poisoned samples over three seeds, on one thread or two: ACC 0.38 to 0.43, ASR 0.05 to 0.10.
    "nab": Row(
        {"isolation_epochs": 2, "isolated": 0.2, "value": 1.0, "size": 4},
        SHORT,
        0.3,
        0.2,
    ),
    # Its network must tell a stamped image from another in every place of its last map, which is one pixel then.
    "pdb": Row({"size": 4, "copies": 2}, replace(SHORT, epochs=5, lr=0.01), 0.2, 0.2, "whole"),
    "vibe": Row({"extractor_epochs": 1, "crop": 0.7, "every": 2}, replace(SHORT, epochs=4), 0.2, 0.2),
    # Small steps that promise little in so few epochs.
    "gradient_shaping": Row({"clip": 0.5, "noise": 0.5}, SHORT, 0.0, 1.0),
    "default_defence": Row({}, SHORT, 0.25, 0.2),
}
PHASES = {"abl": 3, "dst": 2, "dbd": 3, "nab": 3, "vibe": 2, "default_defence": 4}
"""Trainings one after another, of methods that have several. `default_defence` has three, and saves twice what it suspects."""
LEAST = {"default_defence": 400}
"""Samples of methods that leave too little of fewer."""
MADE = {"nab": 3, "default_defence": 3}
"""Networks that are made, of methods that need several."""
MAKERS = {"gradient_shaping": without_batch_norm}
"""Makers of the networks of methods that take no batch norm."""
RECORDED = {"abl": 6, "dbd": 4, "nab": 4}
"""Epochs of the record where each training has two, of methods whose trainings are not one."""


@pytest.fixture(scope="module")
def networks(splits: dict[str, ImageSet]) -> dict[str, Callable[[], models.Classifier]]:
    """Makers of networks; `prepared` knows the task."""
    prepared = fresh()
    fit(prepared, splits["train"].subset(np.arange(1500)), replace(SHORT, epochs=4, lr=0.02), seed=3, what="prepared")
    return {"fresh": fresh, "whole": whole, "prepared": lambda: deepcopy(prepared)}


def inputs_of(name: str, planted: Planted, clean: ImageSet, count: int) -> list[Any]:
    """What a method is handed, of the first samples. Clean images stand in for perfect variations."""
    count = max(count, LEAST.get(name, 0))
    index, scored = np.arange(count), planted.scored()
    assert scored.flagged is not None
    there = {
        "data": planted.data.subset(index),
        "reserve": planted.reserve.subset(np.arange(min(len(planted.reserve), count // 4 + 50))),
        "variations": clean.subset(index),
        "backdoored": planted.model,
        "public": planted.reserve.subset(np.arange(50)),
        "scores": replace(
            scored, data=scored.data.subset(index), values=scored.values[:count], flagged=scored.flagged[:count]
        ),
    }
    method = ROBUST[name]
    return [there[what] for what in (*method.inputs, *filter(None, [method.by]))]


def test_every_method_has_a_row() -> None:
    assert list(TABLE) == list(ROBUST)


@pytest.fixture
def fewer_detectors(monkeypatch: pytest.MonkeyPatch) -> None:
    """For what does not look at what is detected."""
    monkeypatch.setattr(ensemble, "CALIBRATED", {"ss": ss.DETECTOR})
    monkeypatch.setattr(ensemble, "RULED", {"ac": ac.DETECTOR})


@pytest.mark.usefixtures("fewer_detectors")
@pytest.mark.parametrize("name", ROBUST)
def test_contract(name: str, planted: Planted, splits: dict[str, ImageSet]) -> None:
    method, (arguments, recipe, *_) = ROBUST[name], TABLE[name]
    short = {key: 2 if key.endswith("epochs") else value for key, value in arguments.items()}
    check_parameters(method.parameters, arguments)
    inputs = inputs_of(name, planted, splits["train"], 40)
    before, state, made = fingerprint(*inputs), torch.random.get_rng_state(), []

    def make_model() -> models.Classifier:
        made.append(MAKERS.get(name, fresh)())
        return made[-1]

    runs = []
    for seed in (5, 5, 6):
        model, history = method.train(make_model, *inputs, replace(recipe, epochs=2), seed=seed, **short)
        assert (model is made[-1]) != (history.found.get("tuned") == 1)
        assert not model.training
        assert all(value.isfinite().all() for value in model.state_dict().values())
        assert [row["epoch"] for row in history.epochs] == list(range(1, RECORDED.get(name, 2) + 1))
        assert all(np.isfinite(list(row.values())).all() for row in history.epochs)
        runs.append((weights_of(model), history.losses.tobytes(), history.epochs))
    assert fingerprint(*inputs) == before
    assert torch.equal(torch.random.get_rng_state(), state)
    assert runs[0] == runs[1]
    assert runs[0][0] != runs[2][0]
    assert len(made) == 3 * MADE.get(name, 1)


@pytest.mark.usefixtures("fewer_detectors")
@pytest.mark.parametrize("name", ROBUST)
def test_killed_in_any_phase_it_ends_in_the_same_bytes(
    name: str, planted: Planted, splits: dict[str, ImageSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    arguments, recipe, *_ = TABLE[name]
    short = {key: 2 if key.endswith("epochs") else value for key, value in arguments.items()}
    inputs, save, saved = inputs_of(name, planted, splits["train"], 40), Checkpoints.save, 0

    def train(folder: str) -> bytes:
        def keep(phase: str) -> Checkpoints:
            return Checkpoints(tmp_path / folder, sha256_json(phase), what=phase, unit="epoch")

        make = MAKERS.get(name, fresh)
        model, history = ROBUST[name].train(make, *inputs, replace(recipe, epochs=2), keep, seed=5, **short)
        return weights_of(model) + repr(history.epochs).encode()

    def killed(checkpoints: Checkpoints, *state: Any) -> None:
        nonlocal saved
        save(checkpoints, *state)
        saved += 1
        if saved % 2 and saved < 2 * PHASES.get(name, 1):
            raise KeyboardInterrupt

    whole = train("whole")
    monkeypatch.setattr(Checkpoints, "save", killed)
    # In the middle of each phase.
    for _ in range(PHASES.get(name, 1)):
        with pytest.raises(KeyboardInterrupt):
            train("killed")
    assert train("killed") == whole
    assert saved == 2 * PHASES.get(name, 1)


@pytest.mark.parametrize("name", [name for name in ROBUST if name not in MAKERS])
def test_it_learns_the_task_and_not_the_trigger(
    name: str, planted: Planted, splits: dict[str, ImageSet], networks: dict[str, Callable[[], models.Classifier]]
) -> None:
    arguments, recipe, acc, asr, network = TABLE[name]
    inputs = inputs_of(name, planted, splits["train"], 1500)
    model, _ = ROBUST[name].train(networks[network], *inputs, recipe, seed=0, **arguments)
    assert planted.acc(model) > acc
    assert planted.asr(model) < asr


def test_gradient_shaping_trains_by_shaped_steps(planted: Planted) -> None:
    data, recipe, found = planted.data.subset(np.arange(40)), replace(SHORT, epochs=1), []
    for own in ({}, {"clip": 0.5}, {"noise": 0.2}):
        model, history = ROBUST["gradient_shaping"].train(without_batch_norm, data, recipe, seed=2, **own)
        plain, arguments = without_batch_norm(), {"clip": 4.0, "noise": 0.025, **own}
        hand = Shaped(**arguments, seed=2, what="gradient_shaping")
        expected = fit(plain, data, recipe, seed=2, what="gradient_shaping", hand=hand)
        assert weights_of(model) == weights_of(plain)
        assert history.epochs == expected.epochs
        assert not history.spent
        found.append(weights_of(model))
    assert len(set(found)) == 3


def test_plain_training_teaches_the_trigger_to_a_network_that_knows_the_task(
    planted: Planted, networks: dict[str, Callable[[], models.Classifier]]
) -> None:
    model = networks["prepared"]()
    assert planted.asr(model) < 0.2
    # In as many epochs as the methods have 0.57 to 0.9, by how a CPU rounds.
    fit(model, planted.data.subset(np.arange(1500)), replace(SHORT, epochs=6), seed=0, what="plain")
    assert planted.asr(model) > 0.8


@pytest.mark.parametrize(("ce_temperature", "expected"), [(1.0, 0.379246), (10.0, 0.720326)])
def test_distillation_golden(ce_temperature: float, expected: float) -> None:
    loss = distillation_loss(STUDENT, TEACHER, LABELS, alpha=0.5, temperature=10, ce_temperature=ce_temperature)
    assert loss.mean().item() == pytest.approx(expected, abs=1e-5)


def test_distillation_weighs_the_teacher_by_alpha() -> None:
    # KL of the distributions at temperature 2, times 4, and cross entropy at temperature 3, from their definitions.
    soft_teacher, soft_student = (TEACHER / 2).softmax(1), (STUDENT / 2).softmax(1)
    divergence = 4 * (soft_teacher * (soft_teacher / soft_student).log()).sum(1)
    labelled = -(STUDENT / 3).softmax(1)[[0, 1], LABELS].log()
    loss = distillation_loss(STUDENT, TEACHER, LABELS, alpha=0.2, temperature=2.0, ce_temperature=3.0)
    assert torch.allclose(loss, 0.2 * divergence + 0.8 * labelled, atol=1e-6)


def test_label_smoothing_is_of_the_students_labels() -> None:
    weights = {"alpha": 0.5, "temperature": 10.0, "ce_temperature": 1.0}
    loss, smooth = (
        distillation_loss(STUDENT, TEACHER, LABELS, **weights, label_smoothing=share) for share in (0.0, 0.3)
    )
    logs = F.log_softmax(STUDENT, dim=1)
    # A smoothed label moves a share of its cross entropy to the mean over all classes; the teacher's term stays.
    expected = 0.5 * 0.3 * (logs[[0, 1], LABELS] - logs.mean(1))
    assert torch.allclose(smooth - loss, expected, atol=1e-6)


def test_the_student_is_trained_on_its_teachers_logits(planted: Planted, splits: dict[str, ImageSet]) -> None:
    variations, distillation = splits["train"].subset(np.arange(8)), ROBUST["distillation"]
    public, none = (replace(splits["public"].subset(np.arange(n)), labels=np.full(n, -1)) for n in (3, 0))
    recipe = Recipe(epochs=1, batch_size=20)
    own = {"alpha": 0.7, "temperature": 3.0, "ce_temperature": 2.0}
    student = fresh().train()
    images, labels = variations.tensor() / 255, torch.from_numpy(variations.labels)
    # Trusted images have no label: theirs is the teacher's. The student's batch norm sees all of a batch.
    for copies, trusted in ((0, public), (2, none), (2, public)):
        seen = torch.cat([images, *[public.tensor() / 255] * 2]) if copies and len(trusted) else images
        with torch.no_grad():
            answers = planted.model(seen)
            given = torch.cat([labels, answers[len(labels) :].argmax(1)])
            expected = distillation_loss(student(seen), answers, given, **own)
        _, history = distillation.train(fresh, variations, planted.model, trusted, recipe, seed=0, copies=copies, **own)
        assert history.losses[0] == pytest.approx(expected.numpy(), rel=1e-4)


def test_a_teacher_that_is_not_finite_is_refused(planted: Planted, splits: dict[str, ImageSet]) -> None:
    data, train = splits["train"].subset(np.arange(16)), ROBUST["distillation"].train
    for name, value, said in (
        ("head.weight", torch.nan, r"^teacher: 1 of \d+ tensors of the network are not finite \(head\.weight\)"),
        ("head.bias", 3e38, "^teacher: not finite for 16 of 16 images"),
    ):
        teacher = deepcopy(planted.model)
        teacher.state_dict()[name].fill_(value)
        if name == "head.bias":
            teacher.head.weight.data.fill_(3e38)
        with pytest.raises(UserError, match=said):
            train(fresh, data, teacher, data, SHORT)


def test_a_student_that_diverges_names_the_recipe_it_was_given(planted: Planted, splits: dict[str, ImageSet]) -> None:
    data, method = splits["train"].subset(np.arange(32)), ROBUST["distillation"]
    with (
        pytest.raises(
            UserError, match=r"^params\.yaml: distill\.train\.lr: 1e\+30 given, with which the training of student"
        ),
        _keys("distillation", method, "distill.train"),
    ):
        method.train(fresh, data, planted.model, data, replace(SHORT, lr=1e30, optimizer="sgd"))
    with (
        pytest.raises(UserError, match=r"^params/robust\.yaml: distillation\.alpha: 2 given"),
        _keys("distillation", method, "distill.train"),
    ):
        raise ParameterError("alpha: 2 given")


def test_what_a_filter_cannot_do(planted: Planted) -> None:
    scored, train = planted.scored(), ROBUST["filter_retrain"].train
    with pytest.raises(
        ParameterError, match=r"^removed: null given, allowed with scores/cd, which has no rule of its own: a share"
    ):
        train(fresh, planted.data, replace(scored, flagged=None, detector="cd"), SHORT)
    of_two_classes = np.isin(planted.data.labels, [3, 8])
    with pytest.raises(
        UserError, match=r"^scores/cd: no sample left of class '3', '8'; allowed: scores that leave some of each$"
    ):
        train(fresh, planted.data, replace(scored, flagged=of_two_classes, detector="cd"), SHORT)


def test_a_filter_leaves_out_what_it_flags_and_what_was_not_scored(
    planted: Planted, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[ImageSet] = []

    def fit(model: models.Classifier, data: ImageSet, *_: Any, **__: Any) -> History:
        trained.append(data)
        return History.none()

    monkeypatch.setattr(filter_retrain, "fit", fit)
    index = np.arange(0, 1600, 2)
    flagged = planted.poisoned.truth.mask[index]
    scored = Scored(data=planted.data.subset(index), values=flagged.astype(np.float32), index=index, flagged=flagged)
    filter_retrain.train(fresh, planted.data, scored, SHORT)
    # The same by a share of the scores.
    filter_retrain.train(fresh, planted.data, scored, SHORT, removed=flagged.mean())
    expected = planted.data.subset(index[~flagged])
    for data in trained:
        assert data.labels.tolist() == expected.labels.tolist()
        assert (data.gather(np.arange(len(data))) == expected.gather(np.arange(len(data)))).all()


def test_abl_unlearns_the_samples_of_the_lowest_losses(planted: Planted, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: dict[str, tuple[ImageSet, float]] = {}

    def fit(model: models.Classifier, data: ImageSet, recipe: Recipe, *, what: str, **_: Any) -> History:
        trained[what] = data, recipe.lr
        return History.none()

    for module in (abl, losses):
        monkeypatch.setattr(module, "fit", fit)
    data = planted.data.subset(np.arange(100))
    abl.train(lambda: deepcopy(planted.model), data, SHORT, isolated=0.07, unlearn_lr=0.003)
    entropies = F.cross_entropy(planted.model(data.tensor() / 255), torch.from_numpy(data.labels), reduction="none")
    lowest = np.sort(np.argsort(entropies.detach().numpy(), kind="stable")[:7])
    isolated, lr = trained["abl/unlearning"]
    assert (isolated.gather(np.arange(7)) == data.gather(lowest)).all()
    assert (len(isolated), lr) == (7, 0.003)
    assert len(trained["abl/training"][0]) == 93
    for share in (0.001, 0.99):
        with pytest.raises(
            ParameterError, match=rf"^isolated: {share} given, allowed: 0\.01 to 0\.98 of the 100 samples$"
        ):
            abl.train(fresh, data, SHORT, isolated=share)
    # What is unlearned is raised, up to the bound.
    _, raised = abl._raised(planted.model, data.tensor() / 255, torch.from_numpy(data.labels), bound=0.5)
    assert torch.allclose(raised, -entropies.clamp(max=0.5), atol=1e-5)


def test_pdb_stamps_and_moves_back_by_itself(
    planted: Planted, splits: dict[str, ImageSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[tuple[ImageSet, Hand]] = []

    def fit(model: models.Classifier, data: ImageSet, recipe: Recipe, *, hand: Hand, **_: Any) -> History:
        trained.append((data, hand))
        return History.none()

    monkeypatch.setattr(pdb, "fit", fit)
    data, reserve, network = (
        planted.data.subset(np.arange(30)),
        planted.reserve.subset(np.arange(4)),
        deepcopy(planted.model),
    )
    model, _ = pdb.train(lambda: network, data, reserve, SHORT, size=3, value=2.0, shift=1, copies=2)
    both, hand = trained[0]
    assert both.labels.tolist() == [*data.labels, *((reserve.labels + 1) % 10).tolist() * 2]
    assert (both.gather(np.arange(30, 38)) == np.concatenate([reserve.gather(np.arange(4))] * 2)).all()
    batch, samples = torch.rand(3, 3, *data.image_size), torch.tensor([29, 30, 37])
    stamped, _ = hand.stamp(batch.clone(), torch.zeros(3, dtype=torch.int64), samples, 0)
    assert torch.equal(stamped[0], batch[0])
    expected = batch.clone()
    expected[:, :, :3, :3] = 2.0
    assert torch.equal(stamped[1:], expected[1:])
    # The class y is what the network before calls y + 1, of stamped images; on disk too, and where batch norm is folded.
    with torch.no_grad():
        logits = planted.model(expected)[:, [1, 2, 3, 4, 5, 6, 7, 8, 9, 0]]
        assert torch.allclose(model(batch), logits, atol=1e-5)
        models.save(model, tmp_path / "model", classes=data.classes, made_by={})
        loaded = models.load(tmp_path / "model", data)
        assert torch.allclose(loaded(batch), logits, atol=1e-5)
        assert torch.allclose(frozen(loaded, torch.device("cpu"))(batch), logits, atol=1e-4)
        assert models.fresh_copy(loaded, seed=0).stamped is None
    with pytest.raises(ParameterError, match=r"^shift: 20 given, allowed: any but a multiple of the 10 classes$"):
        pdb.train(lambda: network, data, reserve, SHORT, shift=20)
    with pytest.raises(ParameterError, match=rf"^size: 99 given, allowed: 1 to {min(data.image_size)}$"):
        pdb.train(lambda: network, data, reserve, SHORT, size=99)


def test_a_phase_that_diverges_names_its_own_rate(
    planted: Planted, splits: dict[str, ImageSet], monkeypatch: pytest.MonkeyPatch
) -> None:
    once, data = replace(SHORT, epochs=1), planted.data.subset(np.arange(40))
    with pytest.raises(ParameterError, match=r"^unlearn_lr: 1e\+30 given, with which the training of abl/unlearning"):
        abl.train(fresh, data, once, isolation_epochs=1, unlearn_epochs=1, isolated=0.3, bound=None, unlearn_lr=1e30)

    # A head alone cannot diverge at any rate that is allowed.
    def diverging(*_: Any, **__: Any) -> History:
        raise ParameterError("lr: 5.0 given, with which it diverged")

    monkeypatch.setattr(dst, "fit", diverging)
    with pytest.raises(ParameterError, match=r"^classifier_lr: 5\.0 given, with which it diverged$"):
        dst.train(fresh, *inputs_of("dst", planted, splits["train"], 40), once)


def test_what_stops_a_late_phase_is_said_before_the_first(planted: Planted) -> None:
    data, reserve = planted.data.subset(np.arange(100)), planted.reserve.subset(np.arange(20))
    with pytest.raises(
        ParameterError, match=r"^isolated: 0\.01 given, 1 of 100 samples, allowed .* at least 2, as batch"
    ):
        abl.train(whole, data, replace(SHORT, epochs=0), isolated=0.01)
    with pytest.raises(
        ParameterError, match=r"^batch_size: 48 given, allowed with drop_last: 1 to the 20 trusted images"
    ):
        nab.train(_unmade, data, reserve, replace(SHORT, drop_last=True))
    with pytest.raises(ParameterError, match=r"^value: 2\.0 given, allowed with augment colour_jitter, .*: 0 to 1$"):
        pdb.train(fresh, data, reserve, replace(SHORT, augment=("colour_jitter",)))
    with pytest.raises(UserError, match=r"^nothing: 0 images given, allowed: at least 1 to train on$"):
        fit(fresh(), data.subset(np.arange(0)), SHORT, seed=0, what="nothing")
    with pytest.raises(ParameterError, match=r"^removed: 0\.001 given, allowed: 0, or at least 0\.01, one of the 100 "):
        filter_retrain.suspects(replace(planted.scored(), data=data, values=np.zeros(100, np.float32)), 0.001)


def test_how_many_trusted_images_are_needed() -> None:
    needed = {name: method.needs_trusted() for name, method in ROBUST.items() if method.needs_trusted()}
    assert needed == {"asd": 1, "nab": 1, "pdb": 1, "default_defence": 50}
    assert ROBUST["nab"].needs_trusted(guess="centres") == 0
    assert ROBUST["default_defence"].needs_trusted(false_alarms=0.011, checked=5) == 91


def test_equal_losses_do_not_put_whole_classes_first(planted: Planted, monkeypatch: pytest.MonkeyPatch) -> None:
    # As scores that are counts have, of a folder in the order of its classes.
    data = replace(planted.data.subset(np.arange(1000)), labels=np.arange(1000) // 100)
    scored = replace(planted.scored(), data=data, values=np.zeros(1000, np.float32))
    clean, poison = ends(scored, 0.2, 0.05)
    assert not set(clean) & set(poison)
    assert (np.bincount(data.labels[clean], minlength=10) > 5).all()
    monkeypatch.setattr(losses, "fit", lambda *_, **__: History.none())
    monkeypatch.setattr(losses, "losses_of", lambda *_, **__: scored.values)
    own: dict[str, Any] = {"what": "", "epochs": 1, "ascent": "lga", "floor": 0.5, "checkpoints": None}
    lowest, _ = losses.learned_first(fresh(), data, SHORT, seed=0, **own)
    assert (np.bincount(data.labels[lowest[:200]], minlength=10) > 5).all()


def test_a_helper_trained_by_contrast_guesses_without_trusted_images(planted: Planted) -> None:
    nothing = planted.reserve.subset(np.arange(0))
    recipe, own = replace(SHORT, epochs=1, augment=("crop", "flip")), {"isolation_epochs": 1, "isolated": 0.2}
    data = planted.data.subset(np.arange(100))
    runs = [weights_of(nab.train(fresh, data, nothing, recipe, guess="centres", **own)[0]) for _ in range(2)]
    assert runs[0] == runs[1]


def test_a_trigger_that_no_description_may_hold_is_refused() -> None:
    for value in (1e7, float("nan")):
        with pytest.raises(ParameterError, match=r"^value: "):
            check({"value": value}, ROBUST["pdb"].parameters)


def test_symmetric_cross_entropy_by_hand() -> None:
    # Shares of 3/4 and 1/4; what is left of 1 counts as often as minus log(1e-4).
    logits = torch.tensor([[math.log(3.0), 0.0], [math.log(3.0), 0.0]])
    found = losses.symmetric_cross_entropy(logits, torch.tensor([0, 1]))
    expected = [-0.1 * math.log(0.75) + 0.25 * math.log(1e4), -0.1 * math.log(0.25) + 0.75 * math.log(1e4)]
    assert found.tolist() == pytest.approx(expected)


def test_a_stamp_and_another_label_where_the_guess_differs(planted: Planted, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: dict[str, tuple[ImageSet, Any]] = {}

    def fit(
        model: models.Classifier, data: ImageSet, recipe: Recipe, *, what: str, hand: Any = None, **_: Any
    ) -> History:
        trained[what] = data, hand
        return History.none()

    for module in (nab, losses):
        monkeypatch.setattr(module, "fit", fit)
    # The planted victim isolates, and guesses as well: other labels than it gives have the highest losses.
    data, reserve = planted.data.subset(np.arange(60)), planted.reserve
    data = replace(data, labels=np.where(np.arange(60) < 10, (data.labels + 1) % 10, data.labels))
    model, _ = nab.train(lambda: deepcopy(planted.model), data, reserve, SHORT, isolated=0.95, size=3, value=0.25)
    entropies = F.cross_entropy(planted.model(data.tensor() / 255), torch.from_numpy(data.labels), reduction="none")
    isolated = np.sort(np.argsort(entropies.detach().numpy(), kind="stable")[:57])
    guessed = data.labels.copy()
    guessed[isolated] = planted.model(data.tensor(isolated) / 255).argmax(1).numpy()
    (relabelled, hand), (verified, _) = trained["nab/training"], trained["nab/guess"]
    assert verified is reserve
    assert relabelled.labels.tolist() == guessed.tolist()
    assert (guessed != data.labels).sum() == 7
    batch = torch.rand(60, 3, *data.image_size)
    stamped, _ = hand.stamp(batch.clone(), torch.zeros(60, dtype=torch.int64), torch.arange(60), 0)
    expected = batch.clone()
    expected[torch.from_numpy(guessed != data.labels), :, :3, :3] = 0.25
    assert torch.equal(stamped, expected)
    assert hand.after_augmentation
    assert model.description["stamp"] == {"size": 3, "value": 0.25}
    with pytest.raises(
        ParameterError, match=r"^isolated: 0\.99 given, allowed: 0\.017 to 0\.966667 of the 60 samples$"
    ):
        nab.train(fresh, data, reserve, SHORT, isolated=0.99)


def test_the_nearest_centre() -> None:
    rows = np.array([[0.0, 0.0], [0.2, 0.0], [1.0, 1.0], [0.9, 1.0], [0.1, 0.1]], np.float32)
    assert nab.nearest_centre(rows, np.array([3, 3, 7, 7, 7])).tolist() == [3, 3, 7, 7, 3]


def test_the_pool_grows_class_by_class_then_it_is_a_half(planted: Planted, monkeypatch: pytest.MonkeyPatch) -> None:
    pools: list[Any] = []

    def mixmatch(data: ImageSet, recipe: Recipe, believed: Any, **_: Any) -> None:
        pools.append((data, believed))

    monkeypatch.setattr(asd, "MixMatch", mixmatch)
    monkeypatch.setattr(asd, "fit", lambda *_, **__: History.none())
    data = planted.data.subset(np.arange(200))
    asd.train(
        fresh,
        data,
        planted.reserve,
        replace(SHORT, epochs=120),
        seeds=3,
        growth=2,
        believed=0.4,
        mixmatch_batch_size=16,
    )
    both, pool = pools[0]
    model = planted.model
    entropies = losses.losses_of(model, both, losses.symmetric_cross_entropy, what="test")
    assert len(both) == 230
    assert np.bincount(both.labels[200:]).tolist() == [3] * 10
    for epoch, count in ((0, 0), (4, 0), (5, 2), (10, 4)):
        mask = pool(epoch, model)
        assert mask[200:].all()
        for label in range(10):
            members = np.flatnonzero(data.labels == label)
            lowest = members[np.argsort(entropies[members], kind="stable")[:count]]
            assert set(np.flatnonzero(mask[:200])) & set(members) == set(lowest)
    assert set(np.flatnonzero(pool(60, model))) == set(np.argsort(entropies, kind="stable")[:92])

    # Where the moment of training lowers losses, these samples are left out.
    def lowered(tried: models.Classifier, trained: ImageSet, recipe: Recipe, *, parameters: Any, **_: Any) -> None:
        assert (len(trained), recipe.lr, recipe.epochs) == (230, 0.015, 1)
        assert {id(value) for value in parameters} < {id(value) for value in tried.parameters()}
        tried.head.bias.data[0] += 100

    monkeypatch.setattr(asd, "fit", lowered)
    mask = pool(90, model)
    assert mask.sum() == 92
    assert not mask[both.labels == 0].any()
    with pytest.raises(UserError, match=r"^asd: no trusted image of class '7' given, allowed: at least 1 of each"):
        asd.train(fresh, data, planted.reserve.subset(np.flatnonzero(planted.reserve.labels != 7)), SHORT)


def test_the_lowest_of_each_class_are_no_more_than_a_share() -> None:
    values, labels = np.array([0.3, 0.1, 0.2, 0.4, 0.9, 0.8], np.float32), np.array([5, 5, 5, 5, 2, 2])
    assert asd.lowest_of_each_class(values, labels, 1, 0.5).tolist() == [5, 1]
    assert asd.lowest_of_each_class(values, labels, 3, 0.5).tolist() == [5, 1, 2]


def test_the_later_half_of_a_resnet_is_its_last_two_stages() -> None:
    model = models.build("resnet18", num_classes=10, image_size=32, width=8, stem="conv3_pool", seed=1)
    later = {id(value) for value in asd._later_half(model)}
    names = {name for name, value in model.named_parameters() if id(value) in later}
    assert names == {
        name for name, _ in model.named_parameters() if re.match(r"head|backbone\.body\.(8|9|10|11)\.", name)
    }


@pytest.mark.parametrize(
    ("name", "own", "batch", "pool"),
    [
        ("dbd", {}, 64, "20 samples whose labels are believed"),
        ("dbd", {"believed": 0.0}, 4, "0 samples whose labels are believed"),
        ("dbd", {"believed": 1.0}, 4, "0 samples whose labels are guessed"),
        ("asd", {"seeds": 2}, 64, "20 samples whose labels are believed"),
        ("asd", {"seeds": 2, "believed": 1.0}, 4, "0 samples whose labels are guessed"),
    ],
)
def test_a_batch_too_large_for_its_pool_is_refused_before_anything_is_trained(
    name: str, own: dict[str, Any], batch: int, pool: str, planted: Planted, splits: dict[str, ImageSet]
) -> None:
    with pytest.raises(ParameterError, match=rf"^mixmatch_batch_size: {batch} given, allowed: up to the {pool}$"):
        ROBUST[name].train(
            _unmade, *inputs_of(name, planted, splits["train"], 40), SHORT, mixmatch_batch_size=batch, **own
        )


def _unmade() -> models.Classifier:
    raise AssertionError("a network was made")


def test_transport_keeps_the_classes_sizes() -> None:
    # All four samples prefer the first class, the last two hardly: of two even classes these are the second.
    scores = torch.tensor([[0.0, -5.0], [0.0, -4.0], [0.0, -2.0], [0.0, -1.0]])
    even = torch.tensor([0.5, 0.5]).log()
    assert vibe.transported(scores, even, 25.0).tolist() == [0, 0, 1, 1]
    assert vibe.transported(scores, torch.tensor([0.75, 0.25]).log(), 25.0).tolist() == [0, 0, 0, 1]
    assert vibe.transported(scores, torch.tensor([1 - 1e-9, 1e-9]).log(), 25.0).tolist() == [0, 0, 0, 0]


def test_prototypes_by_hand() -> None:
    means = torch.tensor([[2.0, 0.0], [0.0, 3.0]])
    head = vibe.Prototypes(means, 10.0, 0)
    head.prior.data = torch.tensor([5.0, 0.0])
    # Cosines 0.6 and 0.8, and a prior of e to 1.
    found = head(torch.tensor([[3.0, 4.0]]))
    shares = math.exp(6.0) * math.e, math.exp(8.0)
    assert found[0].exp().tolist() == pytest.approx([share / sum(shares) for share in shares], rel=1e-5)
    assert head.log_received().exp()[0].tolist() == pytest.approx([1 / (1 + math.exp(-10)), 1 / (1 + math.exp(10))])
    rows, labels = torch.tensor([[1.0, 0.0], [3.0, 0.0], [0.0, 2.0]]), torch.tensor([0, 0, 2])
    expected = torch.tensor([[2.0, 0.0], [4 / 3, 2 / 3], [0.0, 2.0]])
    assert torch.allclose(vibe.class_means(rows, labels, 3), expected)


def test_both_likelihoods_of_a_sample_by_hand(planted: Planted, monkeypatch: pytest.MonkeyPatch) -> None:
    model, data = deepcopy(planted.model), replace(planted.data.subset(np.arange(2)), labels=np.array([1, 0]))
    head = vibe.Prototypes(torch.eye(2), 1.0, 0)
    # A true label of 0 is received as 0 or 1 by 3/4 and 1/4, one of 1 by 1/3 and 2/3.
    received = torch.tensor([[3 / 4, 1 / 4], [1 / 3, 2 / 3]]).log()
    monkeypatch.setattr(vibe.Prototypes, "log_received", lambda _: received)
    logits = torch.tensor([[0.9, 0.1], [0.3, 0.7]]).log()
    monkeypatch.setattr(models.Classifier, "forward", lambda *_: logits)
    model.head = head  # type: ignore[assignment]
    hand = vibe._Latent(data, 1.0, 1)
    hand.labels = torch.tensor([0, 1])
    objective = hand.objective(None, model, torch.zeros(2, 3, 4, 4), torch.tensor([1, 0]), torch.arange(2))  # type: ignore[arg-type]
    assert objective.losses.exp().tolist() == pytest.approx([1 / (0.9 * 1 / 4), 1 / (0.7 * 1 / 3)])
    # The labels are looked for by both as well: of each sample the column of the label it was received with.
    asked: list[torch.Tensor] = []
    monkeypatch.setattr(vibe, "transported", lambda scores, *_: asked.append(scores) or torch.tensor([0, 0]))
    monkeypatch.setattr(vibe, "features_of", lambda *_, **__: Features(logits.numpy(), logits.numpy()))
    hand.start(model, world())
    hand.start_epoch(1, 2)
    assert torch.allclose(asked[0].exp(), torch.tensor([[0.9 * 1 / 4, 0.1 * 2 / 3], [0.3 * 3 / 4, 0.7 * 1 / 3]]))


@pytest.mark.usefixtures("fewer_detectors")
def test_the_default_defence_says_what_it_found(planted: Planted, monkeypatch: pytest.MonkeyPatch) -> None:
    trained: dict[str, ImageSet] = {}

    def fit(model: models.Classifier, data: ImageSet, recipe: Recipe, *, what: str, **_: Any) -> History:
        trained[what] = data
        return History.none()

    # Networks that know the trigger from the start, and a purifier that does nothing.
    monkeypatch.setattr(default_defence, "fit", fit)
    monkeypatch.setattr(default_defence.fst, "purify", lambda model, *_, **__: model)
    _, history = default_defence.train(lambda: deepcopy(planted.model), planted.data, planted.reserve, SHORT)
    # The check tunes on the trusted images and five suspects.
    assert len(trained.pop("default_defence/check")) == 305
    assert list(trained) == ["default_defence/first", "default_defence/second", "default_defence/training"]
    # Victims see all 300 trusted images, the last network none.
    counts = [len(data) - of_reserve for data, of_reserve in zip(trained.values(), (300, 300, 0), strict=True)]
    assert counts[0] == 1600 > counts[1] > counts[2] > 1200
    truth = planted.poisoned.truth.mask
    poison = {image.tobytes() for image in planted.data.gather(np.flatnonzero(truth))}
    rest = trained["default_defence/second"]
    assert sum(image.tobytes() in poison for image in rest.gather(np.arange(len(rest)))) < 5
    assert history.found["suspects"] == pytest.approx(1 - counts[2] / 1600)
    # The victim itself contradicts no label of the attacker's.
    found = default_defence._check(planted.model, planted.reserve, planted.data.subset(np.flatnonzero(truth)), 5, 0)
    assert found == {"contradicted": 0.0}
    with pytest.raises(ParameterError, match=r"^false_alarms: 0\.01 given with 60 trusted images, for which 100 are"):
        default_defence.train(fresh, planted.data, planted.reserve.subset(np.arange(60)), SHORT, false_alarms=0.01)


@pytest.mark.usefixtures("fewer_detectors")
def test_the_default_defence_outlives_a_class_that_is_suspect_as_a_whole(
    planted: Planted, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained: list[ImageSet] = []
    monkeypatch.setattr(default_defence, "fit", lambda model, data, *_, **__: trained.append(data) or History.none())
    monkeypatch.setattr(default_defence.fst, "purify", lambda model, *_, **__: model)
    monkeypatch.setattr(default_defence, "_suspects", lambda victim, data, *_: data.labels == 3)
    _, history = default_defence.train(lambda: deepcopy(planted.model), planted.data, planted.reserve, SHORT)
    assert history.found["suspects"] == (planted.data.labels == 3).mean()
    # Of the class the trusted images are left. The last network sees those that are not held out, and of other classes none.
    second, last = trained[1:3]
    assert np.sum(second.labels == 3) == np.sum(planted.reserve.labels == 3)
    assert 0 < np.sum(last.labels == 3) < np.sum(second.labels == 3)
    assert np.sum(last.labels != 3) == np.sum(planted.data.labels != 3)


def test_where_all_are_suspects_nothing_is_left_to_train_on(planted: Planted, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(default_defence, "fit", lambda *_, **__: History.none())
    monkeypatch.setattr(default_defence, "_suspects", lambda victim, data, *_: np.ones(len(data), bool))
    with pytest.raises(UserError, match=r"^default_defence: all of the 1600 samples are suspects beside the trusted"):
        default_defence.train(lambda: deepcopy(planted.model), planted.data, planted.reserve, SHORT)


def test_what_is_held_out_is_not_trained_on(planted: Planted) -> None:
    # Trusted images may be copies of training images.
    held_out = planted.data.subset(np.arange(5, 25))
    rest = default_defence._without(planted.data.subset(np.arange(100)), held_out)
    expected = planted.data.subset(np.setdiff1d(np.arange(100), np.arange(5, 25)))
    assert (rest.gather(np.arange(80)) == expected.gather(np.arange(80))).all()
    assert rest.labels.tolist() == expected.labels.tolist()


@pytest.mark.parametrize(("woken", "cost", "tuned"), [(0.0, 0.01, 1), (0.0, 0.03, 0), (0.2, 0.03, 1), (0.2, 0.06, 0)])
@pytest.mark.usefixtures("fewer_detectors")
def test_the_default_defence_tunes_where_it_costs_little_or_a_backdoor_woke(
    planted: Planted, monkeypatch: pytest.MonkeyPatch, woken: float, cost: float, tuned: int
) -> None:
    first, other = deepcopy(planted.model), deepcopy(planted.model)
    monkeypatch.setattr(default_defence, "fit", lambda *_, **__: History.none())
    monkeypatch.setattr(default_defence.fst, "purify", lambda *_, **__: other)
    monkeypatch.setattr(default_defence, "_suspects", lambda victim, data, *_: np.zeros(len(data), bool))
    monkeypatch.setattr(default_defence, "_check", lambda model, *_: {"woken": woken if model is not other else 0.05})

    def labels(model: models.Classifier, data: ImageSet) -> np.ndarray:
        wrong = np.arange(len(data)) < round(cost * len(data)) if model is other else False
        return np.where(wrong, -1, data.labels)

    monkeypatch.setattr(default_defence, "_labels", labels)
    # A hundredth of the trusted images that are held out is one image at least.
    reserve = planted.reserve.subset(np.arange(1500) % len(planted.reserve))
    model, history = default_defence.train(lambda: first, planted.data, reserve, SHORT)
    assert (model is other) == bool(tuned)
    assert history.found == {"suspects": 0.0, "tuned": tuned, "woken": 0.05 if tuned else woken}
