"""LIRA (Doan et al., "LIRA: Learnable, Imperceptible and Robust Backdoor Attacks", ICCV 2021, section 4): a faint noise, made of
each image by a network that is trained against the victim and with it.

Published code: https://github.com/sunbelbd/invisible_backdoor_attacks; a port
https://github.com/SCLBD/BackdoorBench/blob/f02e353/attack/lira.py
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..compute.device import autocast
from ..compute.distributed import World
from ..core.arrays import IntArray, Pixels
from ..core.hyperparameters import Fraction, Positive
from ..crafting.attack import Attack
from ..crafting.context import Context
from ..crafting.copying import Copying
from ..crafting.encoders import in_blocks, loaded, packed
from ..crafting.generators import Learner, Normalising, first_weights, statistics, tensors_of
from ..crafting.stamping import Stamping
from ..models.classifier import Classifier
from ..poisoning.trigger import Trigger
from ..training.hand import Loss, Objective
from ..training.sam import displaced

WIDTHS = (16, 32, 64, 128)
"""Channels of the autoencoder's halvings."""


class Autoencoder(nn.Module):
    """From images [n, c, h, w] to values from -1 to 1 of the same shape: four halvings, and four steps back.

    Args:
        channels: channels of the images.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        for inputs, outputs in zip((channels, *WIDTHS), WIDTHS, strict=False):
            layers += [nn.Conv2d(inputs, outputs, 4, 2, padding=1), nn.BatchNorm2d(outputs), nn.ReLU(inplace=True)]
        for inputs, outputs in zip(WIDTHS[::-1], (*WIDTHS[-2::-1], channels), strict=True):
            layers += [
                nn.ConvTranspose2d(inputs, outputs, 4, 2, padding=1),
                nn.BatchNorm2d(outputs),
                nn.ReLU(inplace=True),
            ]
        # The last layer's values go through a hyperbolic tangent alone.
        self.layers = nn.Sequential(*layers[:-2])

    def forward(self, images: Tensor) -> Tensor:
        height, width = images.shape[-2:]
        # Borders are repeated up to sides that four halvings divide.
        x = F.pad(images, (0, -width % 2 ** len(WIDTHS), 0, -height % 2 ** len(WIDTHS)), mode="replicate")
        out: Tensor = self.layers(x)[..., :height, :width].float().tanh()
        return out


@dataclass(frozen=True)
class Noise(Normalising):
    """image + epsilon * network(image), in the victim's normalised space, where the range of images ends.

    The network is in evaluation mode: batch norm has its running statistics, so that an image's stamp is its own.

    Attributes:
        weights: weights and statistics of the network, float32 [p].
        channels: channels of the images.
        epsilon: largest change of a value in the normalised space.
    """

    # What is added is less than a level with the published epsilon: cut off, half of it would be lost.
    rounding = "round"
    trained = True

    weights: Pixels
    channels: int
    epsilon: float

    def empty(self) -> Autoencoder:
        """The network without its weights."""
        return Autoencoder(self.channels)

    def apply(self, images: Tensor, keys: IntArray, *, train: bool) -> Tensor:
        network = self.frozen(self.empty, self.weights, images.device)
        return in_blocks(lambda block: 255 * self.stamped(network, block / 255), images)

    def stamped(self, network: nn.Module, images: Tensor) -> Tensor:
        """Images [n, c, h, w] in [0, 1] with the noise that a network makes of them."""
        std = torch.from_numpy(self.std).to(images).view(1, -1, 1, 1)
        return (images + self.epsilon * std * network(self.normalised(images))).clamp(0, 1)


class InTurns(Copying):
    """Trains the generator and the victim in turns, then the victim alone, on images as they are and stamped copies beside them.

    Attributes:
        alpha: weight of the loss of the images as they are, beside 1 - alpha of the copies'.
        joint: share of the epochs in which the generator is trained as well.
        lr: the generator's learning rate.
        old: the generator as it was before the epoch, which stamps what the victim learns from.
        new: the generator that is trained.
    """

    def __init__(self, stamping: Stamping, *, alpha: float, joint: float, lr: float) -> None:
        super().__init__(stamping)
        (trigger,) = stamping.poisoned.triggers
        assert isinstance(trigger, Noise)
        self.trigger, self.together = trigger, False
        self.alpha, self.joint, self.lr = alpha, joint, lr

    def start(self, model: Classifier, here: World) -> None:
        self.model, self.here, self.device = model, here, model.head.weight.device
        self.trigger = trigger = self.trigger.as_seen_by(model)
        self.new = Learner(trigger.empty, trigger.weights, self.device, lr=self.lr)
        self.old = loaded(trigger.empty, trigger.weights, self.device).eval().requires_grad_(False)

    def start_epoch(self, epoch: int, epochs: int) -> None:
        super().start_epoch(epoch, epochs)
        self.together = epoch < math.ceil(round(self.joint * epochs, 6))
        # At an epoch's end, published; and so the last one of the first stage is what the second one has.
        self.old.load_state_dict(self.new.network.state_dict())

    def objective(self, plain: Loss, model: Classifier, images: Tensor, labels: Tensor, samples: Tensor) -> Objective:
        poison, cover, given = self.drawn(samples.cpu().numpy(), self.epoch)
        stamped = np.flatnonzero((poison >= 0) | (cover >= 0))
        rows, wanted = torch.from_numpy(stamped).to(images.device), torch.from_numpy(given[stamped]).to(labels)
        with torch.no_grad():
            copies = self.trigger.stamped(self.old, images[rows].float()).to(images.dtype)
        # In one pass: batch norm that saw the copies alone would take away what they have in common, and its running statistics
        # would be those of neither.
        logits, losses = plain(model, torch.cat([images, copies]), torch.cat([labels, wanted]))
        count = len(images)
        # Over the share, and so in expectation the mean over the copies, in small batches as well.
        backdoor = losses[count:].sum() / self.share
        self._batch = (images[rows], wanted, self.here.total(count, images.device))
        extra = (self.alpha - 1) * losses[:count].sum() + (1 - self.alpha) * backdoor
        return Objective(logits[:count], losses[:count], extra)

    def after_step(self) -> None:
        if not self.together:
            return
        images, labels, total = self._batch
        # Batch norm has no statistics over a single copy: such a batch teaches the victim alone.
        if len(images) > 1:
            # The victim's statistics are those of what it is trained on, and its weights get no gradient of this.
            with autocast(self.device), displaced(self.model, (), ()):
                logits = self.model(self.trigger.stamped(self.new.network, images.float()))
            loss = F.cross_entropy(logits.float(), labels, reduction="sum") / self.share
            self.new.follow(loss / total)
        self.new.step(self.here)

    def tensors(self) -> dict[str, Tensor]:
        return {**self.new.tensors("new"), **tensors_of("old", self.old)}

    def check_networks(self) -> None:
        self.new.check("lira")

    def trained(self) -> tuple[Trigger, ...]:
        return (replace(self.trigger, weights=packed(self.new.network)),)


def make(
    context: Context,
    *,
    epsilon: Positive = 0.01,
    alpha: Fraction = 0.5,
    joint: Fraction = 0.5,
    lr: Positive = 1e-4,
) -> Noise:
    """A generator of faint noise, to be trained with the victim.

    In the first stage each step has two halves: the victim learns from images as they are and from copies that the generator
    stamps as it was at the end of the last epoch; the generator learns what sends the victim to the attacker's label. In the second
    stage the generator is fixed and the victim is trained on. The victim receives that model.

    `attack.poison_rate` is the share of the samples of which a stamped copy is trained on (published: all).

    Args:
        context: the attacker's data and seed.
        epsilon: largest change of a value, in units of the victim's normalisation (published: 0.01, about 0.6 of 255 levels).
        alpha: weight of the loss of images as they are, beside 1 - alpha of the stamped ones' (published: 0.5).
        joint: share of the epochs, rounded up, in which the generator is trained as well (published: 50 of 100).
        lr: learning rate of the generator's Adam (published: 1e-4).
    """
    channels = context.train.channels
    weights = first_weights(partial(Autoencoder, channels), context.seed, "lira/generator")
    return Noise(**statistics(channels), weights=weights, channels=channels, epsilon=epsilon)


def hand(stamping: Stamping, *, alpha: Fraction, joint: Fraction, lr: Positive) -> Stamping:
    """The hand in training; its parameters are those of `make`."""
    return InTurns(stamping, alpha=alpha, joint=joint, lr=lr)


ATTACK = Attack(
    make=make,
    trigger=Noise,
    policy={"label_policy": "all2one", "poison_rate": 1.0, "poison_target_class": True},
    policies=("all2one", "all2all"),
    hand=hand,
    copies=True,
)
