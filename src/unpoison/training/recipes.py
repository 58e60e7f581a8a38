"""Published training recipes by name, and a block of settings that starts from one of them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import fields, replace
from typing import Any

from ..core.errors import ParameterError
from ..core.hyperparameters import check, one_of
from .recipe import Recipe

# After cifar10-airbench with its optimiser and its whitening, for the `compact` networks: whole CIFAR-10 on two CPU cores.
COMPACT = Recipe(
    epochs=10,
    batch_size=250,
    optimizer="muon",
    lr=0.12,
    sgd_lr=0.05,
    momentum=0.6,
    weight_decay=5e-4,
    schedule="linear",
    whiten=True,
    label_smoothing=0.2,
    augment=("translate", "alternating_flip"),
)
APART = ("federation", "privacy")
"""Keys of the victim's settings that no recipe has: who trains, and how private that is."""
RECIPES: dict[str, Recipe] = {
    # This project's own: few epochs, for the narrow networks and small sets of a run on a CPU.
    "default": Recipe(
        epochs=20,
        batch_size=128,
        optimizer="sgd",
        lr=0.1,
        momentum=0.9,
        nesterov=True,
        weight_decay=5e-4,
        schedule="onecycle",
        augment=("crop",),
    ),
    # FST (Min et al., NeurIPS 2023), CIFAR-10 and ResNet-18. Its cosine always ends at epoch 100.
    # https://github.com/AISafety-HKUST/stable_backdoor_purification/tree/37d2ef5
    "fst": Recipe(
        epochs=100,
        batch_size=128,
        drop_last=True,
        optimizer="sgd",
        lr=0.1,
        momentum=0.9,
        weight_decay=5e-4,
        schedule="cosine",
        schedule_per="epoch",
        schedule_epochs=100,
        augment=("crop", "flip"),
    ),
    # D-BR (Chen et al., NeurIPS 2022), CIFAR-10: the backdoored model that it repairs.
    # https://github.com/SCLBD/Effective_backdoor_defense/tree/63fda0e
    "dbr": Recipe(
        epochs=200,
        batch_size=128,
        optimizer="sgd",
        lr=0.01,
        momentum=0.9,
        weight_decay=5e-4,
        schedule="multistep",
        schedule_per="epoch",
        milestones=(100, 150),
        gamma=0.1,
        augment=("crop", "flip"),
    ),
    # Cognitive Distillation (Huang et al., ICLR 2023), CIFAR-10. Epoch 60 is the last, so the second milestone never acts;
    # no augmentation. https://github.com/HanxunH/CognitiveDistillation/tree/6aba6f9
    "cd": Recipe(
        epochs=60,
        batch_size=100,
        optimizer="sgd",
        lr=0.1,
        momentum=0.9,
        weight_decay=5e-4,
        schedule="multistep",
        schedule_per="epoch",
        milestones=(45, 60),
        gamma=0.1,
        augment=(),
    ),
    # BackdoorBench (Wu et al., NeurIPS 2022), CIFAR-10 and PreActResNet-18. Its cosine always ends at epoch 100.
    # https://github.com/SCLBD/BackdoorBench/tree/f02e353
    "backdoorbench": Recipe(
        epochs=100,
        batch_size=128,
        drop_last=True,
        optimizer="sgd",
        lr=0.01,
        momentum=0.9,
        weight_decay=5e-4,
        schedule="cosine",
        schedule_per="epoch",
        schedule_epochs=100,
        augment=("crop", "flip"),
    ),
    # Struppek et al. 2023, ImageNette at 224 px and ResNet-101; teacher and student alike.
    # https://github.com/LukasStruppek/Robust_Training_on_Poisoned_Samples/tree/94f0d35
    "struppek": Recipe(
        epochs=100,
        batch_size=128,
        optimizer="adam",
        lr=0.001,
        weight_decay=0.0,
        schedule="multistep",
        schedule_per="epoch",
        milestones=(30, 50),
        gamma=0.1,
        augment=("flip",),
    ),
    # After cifar10-airbench (Jordan 2024): its smoothing, its augmentation, few epochs at a high peak,
    # without its network, its Muon optimiser and its test-time augmentation. docs/training.md says what that may cost.
    "fast": Recipe(
        epochs=10,
        batch_size=128,
        optimizer="sgd",
        lr=0.2,
        momentum=0.9,
        nesterov=True,
        weight_decay=5e-4,
        schedule="onecycle",
        label_smoothing=0.2,
        augment=("translate", "alternating_flip"),
    ),
    "compact": COMPACT,
    # Labels as they are, and nothing that moves a trigger but the flip.
    "compact_low_rate": replace(COMPACT, label_smoothing=0.0, augment=("alternating_flip",)),
    # For a few thousand images, digits among them, which a flip would turn into others: the default run's.
    "small": replace(COMPACT, epochs=8, batch_size=128, label_smoothing=0.0, augment=("translate",)),
    # For texts, which no augmentation of images fits: this project's own.
    "text": Recipe(epochs=10, batch_size=64, optimizer="adam", lr=0.003, weight_decay=0.0, schedule="linear"),
}


def recipe_named(values: Mapping[str, Any]) -> Recipe:
    """The recipe that a block of settings stands for.

    Args:
        values: `recipe`, a name out of `RECIPES` (`default` where absent), and attributes of `Recipe` that replace those of
            the named recipe; null leaves an attribute as it is there.

    Raises:
        ParameterError: an unknown name or key, a value of another type or out of range, or Nesterov momentum of 0.
    """
    allowed = ("recipe", *(field.name for field in fields(Recipe)))
    for key in values:
        if key not in allowed:
            raise ParameterError(f"{key}: unknown key, allowed: {', '.join(allowed)}")
    named: Recipe = one_of(values.get("recipe", "default"), RECIPES, key="recipe")
    given = {key: value for key, value in values.items() if key != "recipe" and value is not None}
    # Only now, as either of the two may come from the named recipe and the other from the block.
    recipe = replace(named, **check(given, Recipe))
    if recipe.optimizer == "sgd" and recipe.nesterov and not recipe.momentum:
        raise ParameterError(f"momentum: {recipe.momentum} given, allowed: above 0, as nesterov is true")
    return recipe
