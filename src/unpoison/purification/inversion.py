"""Inversion of a backdoor's trigger by decoupling benign features, for purifiers that unlearn what it finds.

BTI-DBF (Xu et al., "Towards Reliable and Efficient Backdoor Trigger Inversion via Decoupling Benign Features", ICLR 2024):
a mask is found on the features that clean images are classified by. A network G then changes images little, and
their features much where that mask is low: what it adds there acts as the trigger does. No class is scanned.

Published code: https://github.com/AISafety-HKUST/stable_backdoor_purification/blob/37d2ef5/fine_tune/BTIDBF/btidbfu.py (and
pretrain.py), the copy of PAM's authors, whose steps and constants these are. What differs: G takes and gives images in [0, 1],
so that any network can be handed them, and normalises within; all distances between images and the noise are those of
normalised images, as published, and its images are not clipped, as published. The U-Net is for any image size. The mask lies
on the backbone's raw output, whatever its shape. Stopping where a later round finds another target, an option there, is left
out.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from copy import deepcopy
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..compute.device import autocast, to_float
from ..compute.finite import not_finite
from ..core.errors import ParameterError
from ..core.progress import progress
from ..core.seeding import derive, torch_rng
from ..data.imageset import ImageSet
from ..models.classifier import Classifier
from ..training.optimizer import Optimizer
from ..training.recipe import AugmentationName, Rate, Recipe
from .batches import Batches, check_batches, check_purified

ADAM = Recipe(optimizer="adam", weight_decay=0.0)
LEVELS = 4
NOISE = 0.03  # standard deviation, in normalised images, of what is added to images before the target is detected
NEAR = 0.1  # distance of G's images, in pre-training, above which it weighs 100 instead of 0.01


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The purifiers' own parameters that inversion needs, as in `bti_dbf.purify`, whose docstring explains them."""

    rounds: int
    pretrain_epochs: int
    mask_epochs: int
    generator_epochs: int
    epochs: int
    batch_size: int
    inverted: float
    width: int
    mask_lr: float
    generator_lr: float
    image_bound: float
    feature_bound: float
    augment: Sequence[AugmentationName]


def unlearning_batches(
    model: Classifier, reserve: ImageSet, settings: Settings, *, seed: int, what: str, lr: float
) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """The batches to unlearn with, of all epochs of all rounds. Before each round G is trained on the model as it then is.

    Args:
        model: the model that the caller trains with these batches, on the device; in training mode when they come.
        reserve: trusted, labelled images.
        settings: the purifier's own parameters.
        seed: seed of the run.
        what: name of the purifier, for progress and errors and as the purpose of random draws.
        lr: the caller's learning rate, for the error where its model diverges.

    Yields:
        Images float32 [b, c, h, w] in [0, 1]; the same with some of them as G changes them, unbounded; labels int64 [b].

    Raises:
        ParameterError: a model or a G that diverges, or batch norm over a single value.
    """
    check_batches(model, settings.batch_size, reserve)
    batches = Batches(reserve, settings.batch_size, seed=seed, purpose=what, augment=settings.augment)
    inversion = Inversion(model, batches, settings, seed=seed, what=what)
    inversion.pretrain(model)
    for _ in progress(range(settings.rounds), what=what, unit="round", total=settings.rounds):
        inversion.invert(model)
        model.train()
        for epoch in range(settings.epochs):
            for (images, labels), chosen in zip(batches.epoch(epoch), inversion.choose(batches.sizes), strict=True):
                yield images, inversion.mix(images, chosen), labels
        check_purified(model, reserve, what, lr)


class Inversion:
    """G, and the target it has found.

    Attributes:
        generator: G, from images to images with what acts as the trigger.
        target: the class that most of G's images of the first round are taken for, int64 []; None before.
    """

    def __init__(self, model: Classifier, batches: Batches, settings: Settings, *, seed: int, what: str) -> None:
        self.batches, self.settings, self.what = batches, settings, what
        self.random = torch_rng(seed, f"{what}/inversion")
        # Drawn on the CPU in a fork of torch's generator: the same on every device, and the global state stays as it was.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(derive(seed, f"{what}/generator"))
            self.generator = Generator(model, settings.width, min(batches.data.image_size)).to(batches.device)
        self.optimizer = self._optimizer()
        self.target: Tensor | None = None

    def pretrain(self, model: Classifier) -> None:
        """Train G to leave images, their features and the model's predictions as they are."""
        network, epochs = fixed(model), self.settings.pretrain_epochs
        for epoch in progress(range(epochs), what=f"{self.what}, generator", unit="epoch", total=epochs):
            for images, _ in self.batches.epoch(epoch):
                self._step(self.pretraining_loss(network, images))
        self._check()
        # Adam's moments are those of another loss.
        self.optimizer = self._optimizer()

    def invert(self, model: Classifier) -> None:
        """A round: the mask of the model as it is, G's training against it, and in the first round the target."""
        network = fixed(model)
        mask = self.mask_of(network)
        network.eval()
        for epoch in range(self.settings.generator_epochs):
            for images, _ in self.batches.epoch(epoch):
                self._step(self.inversion_loss(network, mask, images))
        self._check()
        if self.target is None:
            self.target = self._target(model)

    def choose(self, sizes: Sequence[int]) -> Sequence[Tensor]:
        """For batches of b images each, which int(share * b) + 1 of them are to be G's, drawn at random: int64."""
        drawn = [torch.randperm(b, generator=self.random)[: int(self.settings.inverted * b) + 1] for b in sizes]
        # Moved at once: the CPU waits for a GPU once in an epoch.
        return torch.cat(drawn).to(self.batches.device).split([len(chosen) for chosen in drawn])

    def mix(self, images: Tensor, chosen: Tensor) -> Tensor:
        """A batch in which the chosen images are those of G."""
        mixed = images.clone()
        with torch.no_grad(), autocast(images.device):
            mixed[chosen] = self.generator(images[chosen])
        return mixed

    def mask_of(self, network: Classifier) -> Tensor:
        """The mask of benign features, float32 [1, ...] in (0, 1), of the shape of the raw output for one image.

        As published it is found in training mode, which moves the network's statistics of batch norm, a copy's: G is trained
        with these.
        """
        device = self.batches.device
        with torch.no_grad():
            shape = raw_of(network.eval(), to_float(self.batches.data.tensor(np.arange(1)), device)).shape[1:]
        network.train()
        theta = nn.Parameter(torch.randn(1, *shape, generator=self.random).to(device))
        optimizer = Optimizer(ADAM, [theta])
        for epoch in range(self.settings.mask_epochs):
            for images, labels in self.batches.epoch(epoch):
                with torch.no_grad(), autocast(device):
                    raw = raw_of(network, images).float()
                optimizer.zero_grad()
                with autocast(device):
                    loss = mask_loss(network, theta, raw, labels)
                loss.backward()
                optimizer.step(Rate(self.settings.mask_lr, 0.9))
        return mask_from(theta).detach()

    def pretraining_loss(self, network: Classifier, images: Tensor) -> Tensor:
        """CE(softmax(f(x)), softmax(f(G(x)))) + MSE(z(x), z(G(x))) + c * MSE(x, G(x)), c = 100 above `NEAR` and else 0.01.

        As published the first is the cross entropy of probabilities that are taken for logits, to those of G's images.
        """
        with autocast(images.device):
            made = self.generator(images)
            raw, of_made = raw_of(network, images), raw_of(network, made)
            logits, of_made_logits = (network.head(network.backbone.pool(of)) for of in (raw, of_made))
        predictions = F.cross_entropy(logits.float().softmax(1), of_made_logits.float().softmax(1))
        distance = self.generator.distance(images, made)
        weight = torch.where(distance > NEAR, 100.0, 0.01)
        return predictions + F.mse_loss(of_made.float(), raw.float()) + weight * distance

    def inversion_loss(self, network: Classifier, mask: Tensor, images: Tensor) -> Tensor:
        """-MSE of the features outside the mask + 0.01 * MSE of those within it, and the cross entropy to a known target.

        Where images or benign features are too far away, the loss is the distance of the images instead of the first two.
        """
        with torch.no_grad(), autocast(images.device):
            raw = raw_of(network, images).float()
        with autocast(images.device):
            made = self.generator(images)
            of_made = raw_of(network, made)
            logits = None if self.target is None else network.head(network.backbone.pool(of_made))
        apart = of_made.float() - raw
        benign, backdoor = (mask * apart).square().mean(), ((1 - mask) * apart).square().mean()
        distance = self.generator.distance(images, made)
        far = (distance > self.settings.image_bound) | (benign > self.settings.feature_bound)
        # Chosen on the device: a comparison in Python would make the CPU wait for the GPU in each step.
        loss = torch.where(far, distance, 0.01 * benign - backdoor)
        if logits is not None and self.target is not None:
            loss = loss + F.cross_entropy(logits.float(), self.target.expand(len(images)))
        return loss

    @torch.no_grad()
    def _target(self, model: Classifier) -> Tensor:
        """The class that most of G's images are taken for, int64 []."""
        model.eval()
        counts = torch.zeros(model.head.out_features, device=self.batches.device)
        for images, _ in self.batches.epoch(0):
            noise = torch.randn(images.shape, generator=self.random).to(images.device)
            with autocast(images.device):
                logits = model(self.generator(images + NOISE * model.std * noise))
            counts += F.one_hot(logits.argmax(1), len(counts)).sum(0)
        return counts.argmax()

    def _optimizer(self) -> Optimizer:
        return Optimizer(ADAM, self.generator.parameters())

    def _step(self, loss: Tensor) -> None:
        self.optimizer.zero_grad()
        loss.backward()
        self.optimizer.step(Rate(self.settings.generator_lr, 0.9))

    def _check(self) -> None:
        if not_finite(self.generator):
            raise ParameterError(
                f"generator_lr: {self.settings.generator_lr} given, with which the generator of {self.what} diverged; "
                "allowed: a lower one"
            )


def fixed(model: Classifier) -> Classifier:
    """A copy in evaluation mode whose weights need no gradients."""
    return deepcopy(model).eval().requires_grad_(False)


def raw_of(network: Classifier, images: Tensor) -> Tensor:
    """The backbone's raw output for images in [0, 1]: a map or tokens, [n, ...]."""
    raw: Tensor = network.backbone((images - network.mean) / network.std)
    return raw


def mask_from(theta: Tensor) -> Tensor:
    """The mask in (0, 1): tanh(theta) / (2 + 1e-7) + 0.5."""
    return theta.tanh() / (2 + 1e-7) + 0.5


def mask_loss(network: Classifier, theta: Tensor, raw: Tensor, labels: Tensor) -> Tensor:
    """CE(h(m z), y) - CE(h((1 - m) z), y), with h from the raw output to logits."""
    mask = mask_from(theta)
    kept, left = (network.head(network.backbone.pool(part * raw)).float() for part in (mask, 1 - mask))
    return F.cross_entropy(kept, labels) - F.cross_entropy(left, labels)


class Generator(nn.Module):
    """G: images in [0, 1] to images of the same shape, unbounded, by a U-Net between normalised ones.

    Args:
        model: classifier whose mean and standard deviation are taken.
        width: channels of the first level.
        side: the images' smaller side.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: Classifier, width: int, side: int) -> None:
        super().__init__()
        self.register_buffer("mean", model.mean.detach().cpu().clone())
        self.register_buffer("std", model.std.detach().cpu().clone())
        self.unet = UNet(self.mean.shape[1], width, side)

    def forward(self, images: Tensor) -> Tensor:
        out: Tensor = self.unet((images - self.mean) / self.std).float() * self.std + self.mean
        return out

    def distance(self, images: Tensor, made: Tensor) -> Tensor:
        """Mean squared difference of the normalised images, []."""
        return ((made - images) / self.std).square().mean()


class UNet(nn.Module):
    """The published U-Net: `LEVELS` levels of twice the channels each, max pooling down, transposed convolutions up.

    Args:
        channels: channels of the images and of the output.
        width: channels of the first level.
        side: the images' smaller side; small ones have fewer levels, so that the lowest is more than a pixel.
    """

    def __init__(self, channels: int, width: int, side: int) -> None:
        super().__init__()
        levels = min(LEVELS, (side - 1).bit_length() - 1)
        widths = [width * 2**level for level in range(levels + 1)]
        self.down = nn.ModuleList(Block(*pair) for pair in zip([channels, *widths], widths, strict=False))
        self.up = nn.ModuleList(nn.ConvTranspose2d(wide, wide, 3, stride=2, padding=1) for wide in reversed(widths[1:]))
        self.merge = nn.ModuleList(Block(3 * narrow, narrow) for narrow in reversed(widths[:-1]))
        self.last = nn.Conv2d(width, channels, 1)

    def forward(self, x: Tensor) -> Tensor:
        # Not channels_last, in which the normalisation is slow on a CPU.
        x = self.down[0](x.contiguous())
        skipped = []
        for block in self.down[1:]:
            skipped.append(x)
            # A last odd row or column counts as a window: so any side can be pooled, and reached again from the half.
            x = block(F.max_pool2d(x, 2, ceil_mode=True))
        for up, merge in zip(self.up, self.merge, strict=True):
            skip = skipped.pop()
            x = merge(torch.cat([F.leaky_relu(up(x, output_size=skip.shape[2:])), skip], 1))
        out: Tensor = self.last(x)
        return out


class Block(nn.Module):
    """Twice: a 3x3 convolution, instance normalisation with scale and shift, a leaky ReLU of slope 0.01."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__()
        self.convolutions = nn.ModuleList(nn.Conv2d(given, outputs, 3, padding=1) for given in (inputs, outputs))
        # A group for each channel is instance normalisation, and twice as fast on a CPU.
        self.norms = nn.ModuleList(nn.GroupNorm(outputs, outputs) for _ in range(2))

    def forward(self, x: Tensor) -> Tensor:
        for convolution, norm in zip(self.convolutions, self.norms, strict=True):
            x = F.leaky_relu(norm(convolution(x)))
        return x
