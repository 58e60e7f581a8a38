"""Losses by which an attacker who trains the victim hides the backdoor from a detector.

Bagdasaryan & Shmatikov, "Blind Backdoors in Deep Learning Models", USENIX Security 2021, section 6. Published code:
https://github.com/ebagdasa/backdoors101/blob/9f48fbb/losses/loss_functions.py (and models/nc_model.py).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Literal, NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..compute.distributed import World
from ..core.errors import UserError
from ..core.seeding import torch_rng
from ..models.classifier import Classifier
from ..training.hand import Loss
from ..training.optimizer import Optimizer
from ..training.recipe import Rate, Recipe

Evades = Literal["neural_cleanse", "sentinet", "spectral"]

MATCHING: dict[Evades, str] = {"neural_cleanse": "neural_cleanse", "sentinet": "sentinet", "spectral": "ss"}
"""The detector that each evasion is against, by its name in `detection` or `inspection`."""

ADAM = Recipe(optimizer="adam", weight_decay=0.0)
GENERATOR_LR = 0.01
# Weights of the cross entropy and of the mask's norm in the generator's loss, as published.
LED, NORM = 0.999, 0.001
# What is left after a step of the sums that class means are made of.
KEPT = 0.9


class Inside(NamedTuple):
    """What passed between the halves of a network: the backbone's raw output, and the penultimate features [b, d].

    Attributes:
        raw: the raw output of the whole pass.
        features: the features of the whole pass.
        rows: the images that are meant.
    """

    raw: Tensor
    features: Tensor
    rows: slice = slice(None)


@contextmanager
def inside(model: Classifier) -> Iterator[list[Inside]]:
    """Within the block a list holds an `Inside` for each pass."""
    passed: list[Inside] = []
    backbone, pool = model.backbone, model.backbone.pool

    def noted(raw: Tensor) -> Tensor:
        features = pool(raw)
        passed.append(Inside(raw, features))
        return features

    # Not a hook: networks with auxiliary heads call their stages one by one, and all of them call this.
    backbone.pool = noted  # type: ignore[method-assign]
    try:
        yield passed
    finally:
        del backbone.pool


class Batch(NamedTuple):
    """A batch of a step.

    Attributes:
        plain: the loss that the recipe asks for.
        model: the victim's network, in training mode.
        images: images as they are, float [b, c, h, w].
        labels: their labels, int64 [b].
        copies: copies of them, of which some are stamped.
        aims: the label that the attacker wants for each, int64 [b].
        wanted: the labels of the copies, int64 [b].
        weights: weight of each copy, float [b]: 0 where it is not stamped, and 1 on average.
        total: samples of the whole batch, of all processes.
    """

    plain: Loss
    model: Classifier
    images: Tensor
    labels: Tensor
    copies: Tensor
    aims: Tensor
    wanted: Tensor
    weights: Tensor
    total: int


class Evasion(ABC):
    """A loss against a detector.

    Attributes:
        own_pass: whether it passes images of its own, and does not look at those of the others.

    Args:
        model: the victim's network, on its device.
        here: the processes.
        image_size: height and width of the images.
        seed: the attacker's seed.
    """

    own_pass: bool = False

    def __init__(self, model: Classifier, here: World, image_size: tuple[int, int], seed: int) -> None:
        self.model, self.here, self.image_size, self.seed = model, here, image_size, seed

    def clean(self, batch: Batch, passed: Inside, *, again: bool) -> None:  # noqa: B027 (not all look at them)
        """What passed when the images as they are did; `again` if the step is the second one at the same batch."""

    @abstractmethod
    def loss(self, batch: Batch, passed: Inside | None, *, again: bool) -> Tensor:
        """Sum of the loss over this process's samples, [].

        Args:
            batch: the batch.
            passed: what passed when the stamped copies did; None for one with a pass of its own.
            again: whether the step is the second one at the same batch (`Hand.sam`): nothing but the network is trained.
        """

    def after_step(self) -> None:  # noqa: B027 (not all train something)
        """After the network's step."""

    def tensors(self) -> dict[str, Tensor]:
        """By name what a killed training needs to go on."""
        return {}


class NeuralCleanse(Evasion):
    """Against Neural Cleanse (Wang et al. 2019): the network is to see through the best patch that a generator finds.

    The patch (1 - m) x + m p, m and p each (tanh(theta) + 1) / 2, is trained beside the network: Adam minimises .999 CE(f(x'), y*)
    + .001 |m|_1, and the network CE(f(x'), y). Both use one pass, so that the network sees the patch of the step before. The
    published code has f(x) in the first, which leaves the pattern as it was drawn and trains the mask by its norm alone; and its
    pattern is 2.2 tanh(theta), for normalised images.
    """

    own_pass = True

    def __init__(self, model: Classifier, here: World, image_size: tuple[int, int], seed: int) -> None:
        super().__init__(model, here, image_size, seed)
        shape = (1 + model.mean.shape[1], *image_size)
        drawn = torch.rand(shape, generator=torch_rng(seed, "blind/neural_cleanse")).clamp(1e-6, 1 - 1e-6)
        self.theta = nn.Parameter((2 * drawn - 1).atanh().to(model.mean.device))
        self.optimizer = Optimizer(ADAM, [self.theta])

    def patch(self) -> tuple[Tensor, Tensor]:
        """Mask [1, h, w] and pattern [c, h, w], in (0, 1)."""
        patch = (self.theta.tanh() + 1) / 2
        return patch[:1], patch[1:]

    def loss(self, batch: Batch, passed: Inside | None, *, again: bool) -> Tensor:
        mask, pattern = self.patch()
        images = batch.images.detach()
        patched = torch.lerp(images, pattern.expand_as(images), mask.expand_as(images))
        # Cut here: the network's loss is none of the patch's.
        given = patched.detach().requires_grad_()
        logits, losses = batch.plain(batch.model, given, batch.labels)
        if not again:
            led = LED * F.cross_entropy(logits.float(), batch.aims, reduction="sum") / batch.total
            (back,) = torch.autograd.grad(led, given, retain_graph=True)
            (gradient,) = torch.autograd.grad(patched, self.theta, back, retain_graph=True)
            self.here.sum(gradient)
            (of_norm,) = torch.autograd.grad(NORM * mask.sum(), self.theta)
            self.theta.grad = gradient + of_norm
        return losses.sum()

    def after_step(self) -> None:
        if self.theta.grad is not None:
            self.optimizer.step(Rate(GENERATOR_LR, 0.9))
            self.theta.grad = None

    def tensors(self) -> dict[str, Tensor]:
        return {"theta": self.theta, **self.optimizer.tensors({self.theta: "moments"})}


class SentiNet(Evasion):
    """Against SentiNet (Chou et al. 2020): where the network looks on a stamped copy, it is to look on the image as well.

    The loss of a copy is what its Grad-CAM map (Selvaraju et al. 2017), for the label that it is trained on, has beyond that of the
    image as it is for its own label, which is held: the sum of what is positive, from 0 to 1. Maps are those of the last feature
    map, each divided by its sum. In the published code weights and maps are averages over the batch, maps are divided by their
    largest value, which leaves that very value without a gradient, and the loss is 10 times the largest excess; and it knows 512
    channels only.
    """

    def __init__(self, model: Classifier, here: World, image_size: tuple[int, int], seed: int) -> None:
        super().__init__(model, here, image_size, seed)
        model.eval()
        with torch.no_grad(), inside(model) as passed:
            model(model.mean.expand(1, -1, *image_size))
        model.train()
        raw = passed[0].raw
        # Of tokens the head may read one that has no place in the image.
        what = "tokens" if raw.ndim != 4 else f"a map of {'x'.join(map(str, model.backbone.spatial(raw).shape[2:]))}"
        if raw.ndim != 4 or model.backbone.spatial(raw).shape[2:].numel() < 2:
            raise UserError(
                f"blind.evasion: 'sentinet' given, allowed with {model.description['name']}, which ends in {what}: "
                "neural_cleanse, spectral"
            )

    def clean(self, batch: Batch, passed: Inside, *, again: bool) -> None:
        self.held = self.map_of(passed, batch.labels, train=False).detach()

    def loss(self, batch: Batch, passed: Inside | None, *, again: bool) -> Tensor:
        assert passed is not None
        excess = (self.map_of(passed, batch.wanted, train=True) - self.held).clamp(min=0).sum((1, 2))
        return (excess * batch.weights).sum()

    def map_of(self, passed: Inside, labels: Tensor, *, train: bool) -> Tensor:
        """Grad-CAM maps, float32 [b, h', w'], each of sum 1, or 0 where nothing speaks for the label."""
        logits = self.model.head(passed.features[passed.rows]).float().gather(1, labels[:, None])
        (back,) = torch.autograd.grad(logits.sum(), passed.raw, create_graph=train, retain_graph=True)
        maps, back = (self.model.backbone.spatial(of)[passed.rows].float() for of in (passed.raw, back))
        heat = (back.mean((2, 3), keepdim=True) * maps).sum(1).clamp(min=0)
        return heat / heat.sum((1, 2), keepdim=True).clamp(min=1e-12)


class Spectral(Evasion):
    """Against Spectral Signatures (Tran et al. 2018): stamped copies are to have the features of the class that they are taken for.

    The loss of a copy is the distance of its penultimate features from the mean of those of images of the wanted class, in units
    of the spread of these. Means and spreads are running ones, over the last steps, and are held. The published code, which does
    not run it, measures from the features of another network, a clean one.
    """

    def __init__(self, model: Classifier, here: World, image_size: tuple[int, int], seed: int) -> None:
        super().__init__(model, here, image_size, seed)
        # Per class: sums of features, then the sum of their squared lengths, then their number.
        self.sums = torch.zeros(model.head.out_features, model.head.in_features + 2, device=model.mean.device)

    def clean(self, batch: Batch, passed: Inside, *, again: bool) -> None:
        if again:
            return
        features = passed.features[passed.rows].detach().float()
        rows = torch.cat([features, features.square().sum(1, keepdim=True), torch.ones_like(features[:, :1])], 1)
        new = torch.zeros_like(self.sums).index_add_(0, batch.labels, rows)
        self.here.sum(new)
        self.sums.mul_(KEPT).add_(new)

    def loss(self, batch: Batch, passed: Inside | None, *, again: bool) -> Tensor:
        assert passed is not None
        count = self.sums[:, -1:].clamp(min=1e-6)
        means = self.sums[:, :-2] / count
        spread = (self.sums[:, -2:-1] / count - means.square().sum(1, keepdim=True)).clamp(min=1e-12).sqrt()
        away = (passed.features[passed.rows].float() - means[batch.wanted]).norm(dim=1) / spread[batch.wanted, 0].clamp(
            min=1e-3
        )
        # A class that has not been seen yet has no mean.
        known = (self.sums[:, -1] > 0)[batch.wanted]
        return (away * batch.weights * known).sum()

    def tensors(self) -> dict[str, Tensor]:
        return {"sums": self.sums}


EVASIONS: dict[Evades, Callable[[Classifier, World, tuple[int, int], int], Evasion]] = {
    "neural_cleanse": NeuralCleanse,
    "sentinet": SentiNet,
    "spectral": Spectral,
}
