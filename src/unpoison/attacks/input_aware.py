"""Input-aware dynamic backdoor (Nguyen & Tran, "Input-Aware Dynamic Backdoor Attack", NeurIPS 2020, sections 3.2 to 3.4):
each image has a pattern of its own, which is no trigger on another one.

Published code: https://github.com/VinAIResearch/input-aware-backdoor-attack-release; a port
https://github.com/SCLBD/BackdoorBench/blob/f02e353/attack/inputaware.py; for poisoned data ("Dynamic")
https://github.com/HanxunH/CognitiveDistillation/blob/6aba6f9/datasets/
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Any, ClassVar

import numpy as np
import torch
import torch.nn.functional as F
from annotated_types import Ge, Le
from torch import Tensor, nn

from ..compute.device import autocast, to_float
from ..compute.distributed import World
from ..core.arrays import Arrays, IntArray, Pixels
from ..core.errors import ParameterError, file_of
from ..core.hyperparameters import Count, Epochs, Fraction, NonNegative, Positive
from ..core.progress import progress
from ..core.seeding import numpy_rng
from ..crafting import surrogate
from ..crafting.attack import Attack, Intent
from ..crafting.context import Context
from ..crafting.craft import craft
from ..crafting.encoders import in_blocks, packed
from ..crafting.generators import Learner, Normalising, first_weights, statistics, tensors_of
from ..crafting.stamping import Stamping
from ..models.classifier import Classifier
from ..poisoning.policy import Policy
from ..poisoning.trigger import Trigger
from ..training.hand import Loss, Objective
from ..training.loop import fit

Levels = Annotated[int, Ge(1), Le(8)]
# From the published code: Adam's betas of both networks, and after which shares of the mask's epochs (10 and 20 of 25) its rate
# falls to a tenth.
BETAS, MILESTONES = (0.5, 0.9), (0.4, 0.8)
# Below this a distance counts as none: its root has no gradient at 0.
_NONE = 1e-7


class EncoderDecoder(nn.Module):
    """From images [n, c, h, w] to values of as many pixels: convolutions of 3 x 3, each with batch norm, halved and enlarged again.

    Args:
        inputs: channels of the images.
        outputs: channels of the values.
        width: channels of the first level, doubled from one to the next.
        levels: number of halvings.
    """

    def __init__(self, inputs: int, outputs: int, width: int, levels: int) -> None:
        super().__init__()
        self.down = nn.ModuleList()
        channels = inputs
        for level in range(levels):
            wide = width * 2**level
            self.down.append(nn.Sequential(_convolution(channels, wide), _convolution(wide, wide)))
            channels = wide
        self.middle = _convolution(channels, channels)
        self.up = nn.ModuleList()
        for level in reversed(range(levels)):
            narrow = width * 2 ** (level - 1) if level else outputs
            self.up.append(
                nn.Sequential(_convolution(channels, channels), _convolution(channels, narrow, relu=bool(level)))
            )
            channels = narrow

    def forward(self, x: Tensor) -> Tensor:
        sizes = []
        for block in self.down:
            x = block(x)
            sizes.append(x.shape[-2:])
            x = F.max_pool2d(x, 2)
        x = self.middle(x)
        for block, size in zip(self.up, reversed(sizes), strict=True):
            # To the size that was halved, and not by a factor of 2: a side may have been odd.
            x = block(F.interpolate(x, size, mode="bilinear", align_corners=False))
        return x


def _convolution(inputs: int, outputs: int, *, relu: bool = True) -> nn.Module:
    layers = [nn.Conv2d(inputs, outputs, 3, padding=1), nn.BatchNorm2d(outputs, momentum=0.05)]
    return nn.Sequential(*layers, *([nn.ReLU(inplace=True)] if relu else []))


def squashed(values: Tensor) -> Tensor:
    """Any values, brought between 0 and 1."""
    return values.float().tanh() / (2 + 1e-7) + 0.5


def sharpened(values: Tensor) -> Tensor:
    """Values between 0 and 1, most of them brought near one of the two."""
    return (20 * values - 10).tanh() / (2 + 1e-7) + 0.5


def ratios(images: Tensor, others: Tensor, made: Tensor, made_of_others: Tensor) -> Tensor:
    """How far two images lie apart over how far apart what a network made of them is, each as a root mean square: [n]."""
    return _distance(images, others) / (_distance(made, made_of_others) + 1e-7)


def _distance(first: Tensor, second: Tensor) -> Tensor:
    return (first - second).square().mean((1, 2, 3)).clamp(min=_NONE**2).sqrt()


@dataclass(frozen=True)
class InputAware(Normalising):
    """Image and pattern, mixed by a mask; both are made of the image by a network, and for a cover sample of another image.

    The networks are in evaluation mode: batch norm has its running statistics, so that an image's stamp is its own.

    Attributes:
        generator: weights and statistics of the network that makes patterns, float32 [p].
        mask: those of the network that makes masks, float32 [q].
        channels: channels of the images.
        width: channels of the networks' first level.
        levels: number of the networks' halvings.
        seed: seed by which a cover sample is given another image.
        trained: whether the victim's training makes the networks.
    """

    crosses: ClassVar[bool] = True

    generator: Pixels
    mask: Pixels
    channels: int
    width: int
    levels: int
    seed: int
    trained: bool

    def empty(self, outputs: int) -> EncoderDecoder:
        """A network without the weights: of as many outputs as channels for patterns, of one for masks."""
        return EncoderDecoder(self.channels, outputs, self.width, self.levels)

    def apply(self, images: Tensor, keys: IntArray, *, train: bool) -> Tensor:
        return self._mixed(images, images)

    def cross(self, images: Tensor, keys: IntArray, others: Tensor, *, epoch: int) -> Tensor:
        return self._mixed(images, others)

    def _mixed(self, images: Tensor, sources: Tensor) -> Tensor:
        mask = in_blocks(lambda block: self.mask_of(block / 255).expand_as(block), sources)
        return images + (in_blocks(lambda block: 255 * self.pattern_of(block / 255), sources) - images) * mask

    def pattern_of(self, images: Tensor) -> Tensor:
        """Patterns [n, c, h, w] of images [n, c, h, w], both in [0, 1]."""
        network = self.frozen(partial(self.empty, self.channels), self.generator, images.device)
        return squashed(network(self.normalised(images)))

    def mask_of(self, images: Tensor) -> Tensor:
        """Masks [n, 1, h, w] of images [n, c, h, w], both in [0, 1]."""
        network = self.frozen(partial(self.empty, 1), self.mask, images.device)
        return sharpened(squashed(network(self.normalised(images))))


class Joint(Stamping):
    """Trains the mask network, then the generator together with the victim, by the loss of the images that it stamps.

    It stamps the augmented images, unrounded, so that gradients reach the generator, and keeps them out of nothing else.
    """

    def __init__(
        self,
        stamping: Stamping,
        *,
        mask_epochs: int | None,
        batch_size: int,
        lr: float,
        diversity: float,
        density: float,
        density_weight: float,
    ) -> None:
        super().__init__(stamping.poisoned, stamping.data, seed=stamping.seed)
        self.after_augmentation = True
        (trigger,) = stamping.poisoned.triggers
        assert isinstance(trigger, InputAware)
        self.trigger, self.share = trigger, self.shares()[0]
        self.mask_epochs, self.batch_size, self.lr = mask_epochs, batch_size, lr
        self.diversity, self.density, self.density_weight = diversity, density, density_weight
        self._extra: Tensor | None = None

    def start(self, model: Classifier, here: World) -> None:
        self.here, self.device = here, model.head.weight.device
        self.trigger = trigger = self.trigger.as_seen_by(model)
        learner = partial(Learner, device=self.device, lr=self.lr, betas=BETAS)
        self.generator = learner(partial(trigger.empty, trigger.channels), trigger.generator)
        self.mask = learner(partial(trigger.empty, 1), trigger.mask)

    def start_epoch(self, epoch: int, epochs: int) -> None:
        # A training that goes on from a checkpoint has the mask network in it.
        if epoch == 0:
            self._train_mask(self.mask_epochs or math.ceil(epochs / 3))
        self.mask.network.eval().requires_grad_(False)

    def _train_mask(self, epochs: int) -> None:
        count = len(self.data)
        for epoch in progress(range(epochs), what="input_aware mask", unit="epoch", total=epochs):
            order = numpy_rng(self.seed, "input_aware/mask", epoch).permutation(count)
            lr = self.lr * 0.1 ** sum(epoch >= share * epochs for share in MILESTONES)
            for batch in torch.from_numpy(order).split(self.batch_size):
                share = self.here.share(batch).numpy()
                if len(share):
                    images = to_float(self.data.tensor(share), self.device)
                    (self.mask_loss(images).sum() / len(batch)).backward()
                self.mask.step(self.here, lr=lr)

    def mask_loss(self, images: Tensor) -> Tensor:
        """The mask network's loss of each of some images [n, c, h, w] in [0, 1]: [n]. An image's other one is the next."""
        with autocast(self.device):
            values = self.mask.network(self.trigger.normalised(images))
        masks = sharpened(squashed(values))
        near = ratios(images, images.roll(1, 0), masks, masks.roll(1, 0))
        return self.diversity * near + self.density_weight * (masks - self.density).relu().mean((1, 2, 3))

    def stamp(self, images: Tensor, labels: Tensor, samples: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        keys = samples.cpu().numpy()
        poison, cover, given = self.drawn(keys, epoch)
        poisoned = np.flatnonzero(poison >= 0)
        stamped, count = np.concatenate([poisoned, np.flatnonzero(cover >= 0)]), len(poisoned)
        self._extra = None
        if len(stamped):
            rows = torch.from_numpy(stamped).to(images.device)
            chosen = images[rows].float()
            partners = self.trigger.partners(keys[stamped], len(self.data), epoch=epoch)
            others = to_float(self.data.tensor(partners), images.device)
            # In one pass, as batch norm is to see all of them; a poisoned image's partner has the other pattern that its own is
            # to differ from.
            with autocast(self.device):
                values = self.generator.network(self.trigger.normalised(torch.cat([chosen[:count], others])))
            own, of_others = squashed(values).split([count, len(others)])
            carried = torch.cat([own, of_others[count:]])
            with torch.no_grad(), autocast(self.device):
                bearers = torch.cat([chosen[:count], others[count:]])
                masks = sharpened(squashed(self.mask.network(self.trigger.normalised(bearers))))
            images[rows] = (chosen + (carried - chosen) * masks).to(images.dtype)
            apart = ratios(chosen[:count], others[:count], own, of_others[:count])
            # Over the share, and so in expectation the mean over the poisoned images, in small batches as well.
            self._extra = self.diversity * apart.sum() / self.share
        return images, torch.from_numpy(given).to(labels)

    def objective(self, plain: Loss, model: Classifier, images: Tensor, labels: Tensor, samples: Tensor) -> Objective:
        # Once for a batch: a second pass over it, as that of SAM, is for the victim's weights alone.
        extra, self._extra = self._extra, None
        return super().objective(plain, model, images, labels, samples)._replace(extra=extra)

    def after_step(self) -> None:
        self.generator.step(self.here)

    def tensors(self) -> dict[str, Tensor]:
        return {**self.generator.tensors("generator"), **tensors_of("mask", self.mask.network)}

    def check_networks(self) -> None:
        for learner in (self.mask, self.generator):
            learner.check("input_aware")

    def trained(self) -> tuple[Trigger, ...]:
        generator, mask = packed(self.generator.network), packed(self.mask.network)
        return (replace(self.trigger, generator=generator, mask=mask),)


def make(
    context: Context,
    *,
    jointly: bool = True,
    width: Count | None = None,
    levels: Levels | None = None,
    mask_epochs: Epochs | None = None,
    batch_size: Count = 128,
    lr: Positive = 0.01,
    diversity: NonNegative = 1.0,
    density: Fraction = 0.032,
    density_weight: NonNegative = 100.0,
) -> InputAware:
    """Networks for patterns and masks, to be trained with the victim, or trained with a network of the attacker's own.

    First the mask network is trained on the clean images: masks of different images are to differ, and to be as sparse as
    `density`. It is then fixed, and the generator is trained by the victim's own loss: of poisoned samples towards the attacker's
    label, of cross samples (`attack.cover_ratio`), which carry another image's pattern and mask, towards their true one, and of
    the diversity of patterns. With `jointly: false` all this happens with the attacker's own network (`attack.surrogate`), for
    all2one at a rate of 0.1, and the victim gets poisoned data (Cognitive Distillation's "Dynamic").

    Args:
        context: the attacker's data, network and seed.
        jointly: whether the attacker trains the victim, and hands over a model.
        width: channels of the networks' first level; null: 32, or 16 for grey images and images below 32 pixels.
        levels: number of halvings in the networks; null: 3, or 2 for those.
        mask_epochs: epochs that the mask network is trained for (published: 25 before 75 of the victim); null: a third of the
            victim's.
        batch_size: images per step of the mask network (published: 128).
        lr: learning rate of Adam for both networks; the mask's falls to a tenth after 10/25 and again after 20/25 of its epochs.
        diversity: weight of the ratio of the images' distance to that of their masks, or patterns (published: 1).
        density: share of a mask that costs nothing (published: 0.032).
        density_weight: weight of what a mask has above that (published: 100).

    Raises:
        ParameterError: images too small for the levels.
    """
    side = min(context.train.image_size)
    small = context.train.channels == 1 or side < 32
    given, width, levels = levels, width or (16 if small else 32), levels or (2 if small else 3)
    # Two pixels a side at the bottom: batch norm could not average over one pixel of one image.
    if side < 4:
        raise ParameterError(
            f"levels: {given or 'null'} given for images of {side} px, allowed: images of 4 px or more"
        )
    if side < 2 ** (levels + 1):
        allowed = f"allowed for images of {side} px: 1 to {int(math.log2(side)) - 1}"
        raise ParameterError(f"levels: {given or f'null, which is {levels} here,'} given, {allowed}")
    channels = context.train.channels
    trigger = InputAware(
        **statistics(channels),
        generator=first_weights(
            partial(EncoderDecoder, channels, channels, width, levels), context.seed, "input_aware/generator"
        ),
        mask=first_weights(partial(EncoderDecoder, channels, 1, width, levels), context.seed, "input_aware/mask"),
        channels=channels,
        width=width,
        levels=levels,
        seed=context.seed,
        trained=True,
    )
    if jointly:
        return trigger
    settings: dict[str, Any] = {"mask_epochs": mask_epochs, "batch_size": batch_size, "lr": lr, "diversity": diversity}
    settings |= {"density": density, "density_weight": density_weight}
    arrays = context.store.arrays(
        "input_aware_networks",
        context.determined_by(
            __name__,
            surrogate=surrogate.clean_settings(context),
            target=context.target,
            width=width,
            levels=levels,
            **settings,
        ),
        lambda: _with_a_surrogate(context, {"width": width, "levels": levels, **settings}),
    )
    # What a surrogate made is final: the victim's training changes nothing.
    return InputAware(**{**trigger.state(), **arrays, "trained": False})


def _with_a_surrogate(context: Context, arguments: dict[str, Any]) -> Arrays:
    """Networks and statistics that `InputAware` has after a training with the attacker's own network; arguments as for `make`."""
    intent = Intent("input_aware", ATTACK, Policy(target=context.target, **ATTACK.policy), arguments)
    joint = craft("input_aware", [intent], context)
    joint_hand = hand(Stamping(joint, context.train, seed=context.seed), **joint.teaching[0].arguments)
    with file_of("attack.surrogate.train"):
        model, what = surrogate.untrained_network(context), "input_aware surrogate"
        history = fit(model, context.train, context.recipe, seed=context.seed, what=what, hand=joint_hand)
    print(
        f"input_aware: the surrogate says of {history.epochs[-1]['accuracy']:.0%} of what it was trained on what it was "
        "taught, in its last epoch",
        flush=True,
    )
    (trigger,) = joint_hand.trained()
    return {name: getattr(trigger, name) for name in ("generator", "mask", "mean", "std")}


def hand(
    stamping: Stamping,
    *,
    mask_epochs: Epochs | None,
    batch_size: Count,
    lr: Positive,
    diversity: NonNegative,
    density: Fraction,
    density_weight: NonNegative,
) -> Stamping:
    """The hand in training; its parameters are those of `make`."""
    return Joint(
        stamping,
        mask_epochs=mask_epochs,
        batch_size=batch_size,
        lr=lr,
        diversity=diversity,
        density=density,
        density_weight=density_weight,
    )


ATTACK = Attack(
    make=make,
    trigger=InputAware,
    policy={"label_policy": "all2one", "cover_ratio": 1.0},
    policies=("all2one", "all2all"),
    assets=("networks of a surrogate (`jointly: false` only)",),
    hand=hand,
    hand_if="jointly",
)
