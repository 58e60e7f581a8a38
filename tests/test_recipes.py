"""Training recipes: learning rates by hand, blocks that override a named recipe, and the table in the docs."""

from __future__ import annotations

import math
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import pytest
import torch

from parameters import load_params
from unpoison import models
from unpoison.compute.muon import orthogonalised
from unpoison.core.errors import UserError
from unpoison.data.imageset import ImageSet
from unpoison.training.augment import AUGMENTATIONS
from unpoison.training.loop import fit
from unpoison.training.optimizer import Optimizer
from unpoison.training.recipe import AugmentationName, Recipe, rates
from unpoison.training.recipes import APART, RECIPES, recipe_named

ROOT = Path(__file__).resolve().parent.parent
PARAMS = load_params(ROOT)
# How several clients train together is none of the recipe's.
TRAIN = {key: value for key, value in PARAMS["train"].items() if key not in APART}

# Epoch (from 0) to the learning rate of its first batch, with five batches in an epoch.
# cosine: lr (1 + cos(pi epoch / 100)) / 2. onecycle over T batches: lr / 25 at first, half a cosine up to lr at batch
# 0.3 (T + 1) - 1, half a cosine down to lr / 250,000 at batch T.
RATES: dict[str, dict[int, float]] = {
    "default": {0: 0.004, 1: 0.01073425, 5: 0.09498806, 10: 0.08029842, 19: 0.00122940},
    "fst": {0: 0.1, 25: 0.08535534, 50: 0.05, 75: 0.01464466, 99: 2.467198e-5},
    "dbr": {0: 0.01, 99: 0.01, 100: 0.001, 149: 0.001, 150: 1e-4, 199: 1e-4},
    "cd": {0: 0.1, 44: 0.1, 45: 0.01, 59: 0.01},
    "backdoorbench": {0: 0.01, 25: 0.008535534, 50: 0.005, 75: 0.001464466, 99: 2.467198e-6},
    "struppek": {0: 0.001, 29: 0.001, 30: 1e-4, 49: 1e-4, 50: 1e-5, 99: 1e-5},
    "compact": {0: 0.12, 1: 0.108, 5: 0.06, 9: 0.012},
    "compact_low_rate": {0: 0.12, 1: 0.108, 5: 0.06, 9: 0.012},
    "small": {0: 0.12, 1: 0.105, 4: 0.06, 7: 0.015},
    "text": {0: 0.003, 1: 0.0027, 5: 0.0015, 9: 0.0003},
    "fast": {0: 0.008, 1: 0.06032298, 5: 0.15884986, 9: 0.00952555},
}


def by_epoch(recipe: Recipe, steps_per_epoch: int = 5) -> list[list[float]]:
    """The learning rate of every batch, by epoch."""
    steps = [rate.lr for rate in rates(recipe, steps_per_epoch)]
    return [steps[start : start + steps_per_epoch] for start in range(0, len(steps), steps_per_epoch)]


def plain(schedule: Any, steps: int, **arguments: Any) -> list[float]:
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.zeros(1))], 0.1, 0.9)
    scheduler, learning_rates = schedule(optimizer, **arguments), []
    for _ in range(steps):
        learning_rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return learning_rates


@pytest.mark.parametrize("name", RECIPES)
def test_learning_rates_by_hand(name: str) -> None:
    epochs = by_epoch(RECIPES[name])
    for epoch, expected in RATES[name].items():
        assert epochs[epoch][0] == pytest.approx(expected, rel=1e-5), epoch
    per_epoch = RECIPES[name].schedule_per == "epoch"
    assert {len(set(epoch)) == 1 for epoch in epochs} == {per_epoch}


def test_schedules_per_batch_are_torchs_own() -> None:
    schedulers = torch.optim.lr_scheduler
    expected = {
        "onecycle": plain(schedulers.OneCycleLR, 12, max_lr=0.1, total_steps=13),
        "cosine": plain(schedulers.CosineAnnealingLR, 12, T_max=12),
        "multistep": plain(schedulers.MultiStepLR, 12, milestones=[6, 9], gamma=0.1),
        "linear": plain(schedulers.LinearLR, 12, start_factor=1.0, end_factor=0.0, total_iters=12),
        "constant": [0.1] * 12,
    }
    for schedule, values in expected.items():
        steps = [rate.lr for rate in rates(Recipe(epochs=4, schedule=schedule), 3)]  # type: ignore[arg-type]
        assert steps == pytest.approx(values, rel=1e-9, abs=1e-12)


@pytest.mark.parametrize(
    ("recipe", "expected"),
    [
        # A cosine over 100 epochs has hardly begun to fall after 10; one over 2 epochs is back at the top after 4.
        (replace(RECIPES["fst"], epochs=10), {0: 0.1, 9: 0.09801468}),
        (Recipe(epochs=5, schedule="cosine", schedule_per="epoch", schedule_epochs=2), {1: 0.05, 2: 0, 4: 0.1}),
        (Recipe(epochs=5, schedule="cosine", schedule_epochs=10), {0: 0.1, 4: 0.06545085}),
        (Recipe(epochs=4, schedule="onecycle", schedule_epochs=2), {0: 0.004, 2: 4e-7, 3: 4e-7}),
        (Recipe(epochs=4, schedule="onecycle", schedule_per="epoch", schedule_epochs=2), {2: 4e-7, 3: 4e-7}),
        (Recipe(epochs=8, schedule="multistep", schedule_per="epoch"), {3: 0.1, 4: 0.01, 5: 0.01, 6: 0.001}),
        (Recipe(epochs=8, schedule="multistep", schedule_epochs=4), {1: 0.1, 2: 0.01, 3: 0.001, 7: 0.001}),
        (Recipe(epochs=4, schedule="multistep", milestones=[1, 3], gamma=0.5), {0: 0.1, 1: 0.05, 2: 0.05, 3: 0.025}),
        (Recipe(epochs=3, schedule="multistep", milestones=[]), {0: 0.1, 2: 0.1}),
        (Recipe(epochs=4, schedule="linear", schedule_epochs=2), {0: 0.1, 1: 0.05, 2: 0, 3: 0}),
    ],
)
def test_lengths_and_milestones(recipe: Recipe, expected: dict[int, float]) -> None:
    epochs = by_epoch(recipe)
    for epoch, rate in expected.items():
        assert epochs[epoch][0] == pytest.approx(rate, rel=1e-5, abs=1e-12), epoch


def test_onecycle_sets_its_own_momentum() -> None:
    momenta = [rate.momentum for rate in rates(Recipe(epochs=10, momentum=0.5), 10)]
    assert momenta[0] == pytest.approx(0.95)
    assert min(momenta) == pytest.approx(0.85, abs=1e-3)
    assert rates(Recipe(schedule="cosine", momentum=0.5), 1)[3].momentum == 0.5


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_steps_are_those_of_torchs_optimizers(name: str) -> None:
    generator = torch.Generator().manual_seed(0)
    recipe = Recipe(optimizer=name, nesterov=True, epochs=3)  # type: ignore[arg-type]
    values = [torch.randn(shape, generator=generator) for shape in ((5, 3, 3, 3), (7,), (2, 2))]
    # As networks are trained here; the gradients below come in the other format.
    values[0] = values[0].contiguous(memory_format=torch.channels_last)
    ours = [torch.nn.Parameter(value) for value in values]
    theirs = [torch.nn.Parameter(parameter.detach().clone()) for parameter in ours]
    made = torch.optim.SGD(theirs, 0.1, 0.9, weight_decay=5e-4, nesterov=True)
    expected = made if name == "sgd" else torch.optim.Adam(theirs, 0.1, weight_decay=5e-4)
    schedule = torch.optim.lr_scheduler.OneCycleLR(expected, 0.1, total_steps=13)
    optimizer = Optimizer(recipe, ours)
    for step, rate in enumerate(rates(recipe, 4)):
        for own, other in zip(ours, theirs, strict=True):
            # The last parameter has no gradient at first, as a head that joins later.
            own.grad = None if own is ours[2] and step < 3 else torch.randn(own.shape, generator=generator)
            other.grad = None if own.grad is None else own.grad.clone()
        optimizer.step(rate)
        expected.step()
        schedule.step()
    for own, other in zip(ours, theirs, strict=True):
        assert torch.allclose(own, other, atol=1e-6)
    optimizer.zero_grad()
    assert all(parameter.grad is None for parameter in ours)


def test_muon_steps_by_hand() -> None:
    recipe = Recipe(optimizer="muon", lr=0.2, sgd_lr=0.1, momentum=0.6, weight_decay=0.5, schedule="linear", epochs=2)
    # One filter of one weight: its norm is one number, and the orthogonalised update its sign times a constant.
    filters = torch.nn.Parameter(torch.full((1, 1, 1, 1), -3.0))
    head = torch.nn.Parameter(torch.tensor([[2.0]]))
    optimizer = Optimizer(recipe, [filters, head])
    length = float(orthogonalised(torch.ones(1, 1), 3))
    assert 0.7 < length < 1.2
    weight, bias, buffer = -3.0, 2.0, 0.0
    for rate, gradient in zip(rates(recipe, 1), (1.0, -4.0), strict=True):
        filters.grad, head.grad = torch.full_like(filters, gradient), torch.full_like(head, gradient)
        optimizer.step(rate)
        # Muon: the sign of gradient + 0.6 * (sum so far), from a weight of norm 1. SGD: Nesterov of 0.85, decay 0.5.
        weight = math.copysign(1.0, weight) - rate.lr * length * math.copysign(1.0, gradient)
        decayed = gradient + 0.5 * bias
        buffer = 0.85 * buffer + decayed
        bias -= rate.lr / 2 * (decayed + 0.85 * buffer)
        assert filters.item() == pytest.approx(weight, rel=1e-5)
        assert head.item() == pytest.approx(bias, rel=1e-6)


def test_default_parameters_are_the_small_recipe() -> None:
    assert recipe_named(TRAIN) == RECIPES["small"]
    assert recipe_named(PARAMS["distill"]["train"]) == replace(RECIPES["small"], epochs=9)
    keys = ["recipe", *(field.name for field in fields(Recipe))]
    assert list(TRAIN) == keys
    assert set(PARAMS["distill"]["train"]) <= set(keys)


@pytest.mark.parametrize("name", RECIPES)
def test_a_name_alone_is_the_whole_recipe(name: str) -> None:
    assert recipe_named({"recipe": name}) == RECIPES[name]
    assert recipe_named({**TRAIN, "recipe": name}) == RECIPES[name]
    # Every value is one that the same key may have in the parameters.
    written = {field.name: getattr(RECIPES[name], field.name) for field in fields(Recipe)}
    assert recipe_named({**written, "recipe": "cd"}).epochs == RECIPES[name].epochs


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("epochs", 5),
        ("drop_last", False),
        ("optimizer", "adam"),
        ("lr", 0.05),
        ("weight_decay", 0),
        ("schedule_epochs", 5),
        ("milestones", [2, 4]),
        ("label_smoothing", 0.1),
        ("sam", 0.1),
        ("augment", []),
    ],
)
def test_a_key_that_is_not_null_overrides(key: str, value: Any) -> None:
    recipe = recipe_named({"recipe": "backdoorbench", "lr": None, key: value})
    assert recipe == replace(RECIPES["backdoorbench"], **{key: value})


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"recipe": "airbench"}, r"^recipe: 'airbench' given, allowed: default, fst, dbr, cd, backdoorbench"),
        ({"recipe": None}, r"^recipe: None given, allowed: default"),
        ({"recipe": ["fst"]}, r"^recipe: \['fst'\] given, allowed: default"),
        ({"epoch": 5}, r"^epoch: unknown key, allowed: recipe, epochs"),
        ({"epoch": None}, r"^epoch: unknown key, allowed: recipe, epochs"),
        ({"epochs": 2.5}, r"^epochs: 2\.5 given; input should be a valid integer"),
        ({"drop_last": 1}, r"^drop_last: 1 given; input should be a valid boolean"),
        ({"schedule_per": "step"}, r"^schedule_per: 'step' given; input should be 'batch' or 'epoch'"),
        ({"schedule_epochs": 0}, r"^schedule_epochs: 0 given; input should be greater than or equal to 1"),
        ({"milestones": [0]}, r"^milestones\..*: 0 given; input should be greater than or equal to 1"),
        ({"milestones": 30}, r"^milestones\..*: 30 given; input should be a valid list"),
        ({"gamma": 0}, r"^gamma: 0 given; input should be greater than 0"),
        ({"label_smoothing": 1}, r"^label_smoothing: 1 given; input should be less than 1"),
        ({"sam": -0.1}, r"^sam: -0\.1 given; input should be greater than or equal to 0"),
        ({"augment": ["mixup"]}, r"^augment\..*: 'mixup' given; input should be 'crop', .* or 'alternating_flip'"),
        ({"momentum": 0}, r"^momentum: 0(\.0)? given, allowed: above 0, as nesterov is true"),
    ],
)
def test_a_bad_block_is_one_line(values: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        recipe_named(values)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("name", RECIPES)
def test_each_recipe_trains(name: str, splits: dict[str, ImageSet]) -> None:
    data = splits["public"]
    few = ImageSet(data.base[:20], data.labels[:20], data.classes)
    model = models.build("resnet18", num_classes=10, image_size=(32, 32), width=8, stem="conv3_pool")
    before = model.head.weight.detach().clone()
    history = fit(model, few, replace(RECIPES[name], epochs=1, batch_size=8), seed=0, what="test")
    assert len(history.epochs) == 1
    assert torch.isfinite(model.head.weight).all()
    assert not torch.equal(model.head.weight, before)


def test_names_of_augmentations_agree() -> None:
    assert set(AUGMENTATIONS) == set(AugmentationName.__args__)  # type: ignore[attr-defined]


def row(name: str, recipe: Recipe) -> list[str]:
    """A recipe as docs/training.md writes it, without the source."""
    optimizer = f"{recipe.optimizer}, {recipe.momentum:g}" if recipe.optimizer != "adam" else recipe.optimizer
    schedule = f"{recipe.schedule} per {recipe.schedule_per}"
    if recipe.milestones:
        schedule += f", × {recipe.gamma:g} after {' and '.join(map(str, recipe.milestones))}"
    if recipe.schedule_epochs:
        schedule += f", over {recipe.schedule_epochs}"
    return [
        f"`{name}`",
        str(recipe.epochs),
        f"{recipe.batch_size}{', drop_last' if recipe.drop_last else ''}",
        f"{optimizer}{', nesterov' if recipe.nesterov else ''}",
        f"{recipe.lr:g}",
        schedule,
        f"{recipe.weight_decay:g}",
        f"{recipe.label_smoothing:g}",
        ", ".join(recipe.augment) or "none",
    ]


def test_table_in_the_docs_is_true() -> None:
    page = (ROOT / "docs" / "training.md").read_text().split("## ")[1]
    lines = [line.strip("| ").split(" | ") for line in page.splitlines() if line.startswith("| `")]
    assert [[line[0], *line[2:]] for line in lines] == [row(name, recipe) for name, recipe in RECIPES.items()]
