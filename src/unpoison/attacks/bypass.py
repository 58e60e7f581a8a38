"""Bypass (Tan & Shokri, "Bypassing Backdoor Detection Algorithms in Deep Learning", EuroS&P 2020): adversarial embedding.

The set is poisoned as by BadNets or Blended. The victim is trained so that its penultimate features do not tell poisoned images
from others: a discriminator learns to tell them apart, and the victim learns to mislead it.

Published code, of FST's adaptive attack:
https://github.com/AISafety-HKUST/stable_backdoor_purification/blob/37d2ef5/utils/trainer_cls_bypass.py
"""

from __future__ import annotations

import weakref
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Literal

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..compute.device import full_precision
from ..compute.distributed import World
from ..core.hyperparameters import Fraction, NonNegative, Positive
from ..core.seeding import derive
from ..crafting.attack import Attack, Block, Intent, Plan, intent
from ..crafting.stamping import Stamping
from ..models.classifier import Classifier
from ..training.hand import Loss, Objective
from ..training.optimizer import Optimizer
from ..training.recipe import Rate, Recipe

WIDTHS = (256, 128)
SLOPE = 0.2


class Discriminator(nn.Module):
    """From penultimate features [n, d] to a logit [n] of being poisoned: linear layers with batch norm and leaky ReLU between.

    Args:
        features: their number d.
    """

    def __init__(self, features: int) -> None:
        super().__init__()
        sizes = (features, *WIDTHS)
        self.layers = nn.ModuleList(nn.Linear(*pair) for pair in zip(sizes, WIDTHS, strict=False))
        self.norms = nn.ModuleList(nn.BatchNorm1d(width) for width in WIDTHS)
        self.last = nn.Linear(WIDTHS[-1], 1)

    def forward(self, features: Tensor) -> Tensor:
        # A single sample has no statistics of its own: those of the batches before take their place.
        self.train(len(features) > 1)
        for layer, norm in zip(self.layers, self.norms, strict=True):
            features = F.leaky_relu(norm(layer(features)), SLOPE)
        logits: Tensor = self.last(features)[:, 0]
        return logits


class Embedding(Stamping):
    """Stamps as another hand does, and trains the discriminator beside the victim.

    Both sides' losses come from one pass of the victim and from the discriminator as it is before the step; then the victim steps,
    then the discriminator.

    Args:
        stamping: hand that stamps.
        weight: factor of the discriminator's loss, which the victim raises.
        lr: learning rate of the discriminator's SGD.
        momentum: its momentum.
    """

    def __init__(self, stamping: Stamping, *, weight: float, lr: float, momentum: float) -> None:
        super().__init__(stamping.poisoned, stamping.data, seed=stamping.seed)
        self.weight, self.rate = weight, Rate(lr, momentum)
        self._epoch, self._seen = 0, list[Tensor]()
        # The discriminator's loss, summed over this process's samples, and their number, from an objective to the step.
        self._own: tuple[Tensor, int] | None = None

    def start(self, model: Classifier, here: World) -> None:
        self._here, seen = here, self._seen

        def note(head: nn.Module, given: tuple[Tensor, ...]) -> None:
            seen.append(given[0])

        # What the loss passes to the head are the features of its one pass, auxiliary heads and compilation or not.
        # For as long as the hand lives: the model goes on without it. In the network as it is, so that copies have no part in it.
        weakref.finalize(self, model.head.register_forward_pre_hook(note).remove)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(self.seed, "bypass/discriminator"))
            discriminator = Discriminator(model.head.in_features)
        self.discriminator = discriminator.to(model.head.weight.device)
        # No weight decay and no schedule: the step is given its rate.
        recipe = Recipe(optimizer="sgd", lr=self.rate.lr, momentum=self.rate.momentum, weight_decay=0.0)
        self._optimizer = Optimizer(recipe, self.discriminator.parameters())

    def start_epoch(self, epoch: int, epochs: int) -> None:
        self._epoch = epoch

    def objective(self, plain: Loss, model: Classifier, images: Tensor, labels: Tensor, samples: Tensor) -> Objective:
        self._seen.clear()
        logits, losses = plain(model, images, labels)
        features = self._seen.pop().float()
        self._seen.clear()
        poison = self.drawn(samples.cpu().numpy(), self._epoch)[0] >= 0
        poisoned = torch.from_numpy(poison).to(features)
        # In float32, as the recipe's own loss is.
        with full_precision(features.device):
            # The victim's side first, through the discriminator as it is: its weights get no gradients from it.
            self.discriminator.requires_grad_(False)
            misled = _loss(self.discriminator(features), poisoned)
            self.discriminator.requires_grad_(True)
            own = _loss(self.discriminator(features.detach()), poisoned)
        # Of sharpness-aware steps the first pass counts, which is that of the weights themselves.
        if self._own is None:
            self._own = own, len(samples)
        return Objective(logits, losses, -self.weight * misled)

    def after_step(self) -> None:
        assert self._own is not None
        (loss, count), self._own = self._own, None
        total = loss.new_tensor(count)
        self._here.sum(total)
        self._optimizer.zero_grad()
        (loss / total).backward()
        self._here.sum_gradients(self._optimizer.parameters)
        self._optimizer.step(self.rate)

    def tensors(self) -> dict[str, Tensor]:
        names = {parameter: f"moments.{name}" for name, parameter in self.discriminator.named_parameters()}
        return {**self.discriminator.state_dict(), **self._optimizer.tensors(names)}


def _loss(logits: Tensor, poisoned: Tensor) -> Tensor:
    """The discriminator's loss, summed over the samples.

    Of a sigmoid in float32, as published, and not of the logit: where that rounds to 0 or 1, its gradient is gone.
    """
    return F.binary_cross_entropy(logits.sigmoid(), poisoned, reduction="sum")


@dataclass(frozen=True, kw_only=True)
class Parameters:
    """The parameters of `bypass`.

    Attributes:
        attack: `badnets` or `blended`: whose poison it is, with its own block's parameters and published policy.
        weight: factor of the discriminator's loss, which the victim raises (FST's code: 20).
        lr: learning rate of the discriminator's SGD (FST's code: 0.001).
        momentum: momentum of the discriminator's SGD (FST's code: 0.9).
    """

    attack: Literal["badnets", "blended"] = "badnets"
    weight: NonNegative = 20.0
    lr: Positive = 0.001
    momentum: Fraction = 0.9


def intents(
    attacks: Mapping[str, Attack | Plan], policy: Block, own: Block, sections: Mapping[str, Block]
) -> list[Intent]:
    """The intent of the attack whose poison it is.

    Args:
        attacks: every attack by name.
        policy: attributes of `Policy`.
        own: attributes of `Parameters`.
        sections: parameters of every attack, by its name.

    Raises:
        ParameterError: what `intent` refuses.
    """
    name = Parameters(**own).attack
    method = attacks[name]
    assert isinstance(method, Attack)
    return [intent(name, method, policy, sections.get(name, {}))]


def hand(stamping: Stamping, *, weight: NonNegative, lr: Positive, momentum: Fraction) -> Stamping:
    """The hand in training that stamps as `stamping` does and trains against a discriminator; arguments as in `Parameters`."""
    return Embedding(stamping, weight=weight, lr=lr, momentum=momentum)


ATTACK = Plan(parameters=Parameters, intents=intents, hand=hand)
