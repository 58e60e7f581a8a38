"""Neural Cleanse (Wang et al., "Neural Cleanse: Identifying and Mitigating Backdoor Attacks in Neural Networks", S&P 2019).

For every class the smallest patch that takes all trusted images to it: a backdoor's target needs little more than its trigger,
any other class a patch that hides much of the image.

Published code: https://github.com/bolunwang/backdoor/blob/e857774/visualizer.py
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Annotated

import numpy as np
import torch
from annotated_types import Gt, Le
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from ..compute.device import autocast, pick_device, to_float
from ..compute.finite import check_finite
from ..compute.inference import frozen
from ..core.errors import ParameterError
from ..core.hyperparameters import Count, Epochs, Fraction, Positive
from ..core.progress import progress
from ..core.seeding import numpy_rng, torch_rng
from ..data.imageset import ImageSet
from ..data.verdicts import Verdict
from ..models.classifier import Classifier
from .inspector import Inspector, check_classes, groups, span

CAPTION = "Neural Cleanse: the smallest patch that takes trusted images to each class, on black."
STALE = 5  # times the patience: epochs after which a search ends whose mask does not become smaller
HOPELESS = 100  # and epochs after which one ends that has not come as far as to raise the weight
SMALLER = 0.99  # a mask is smaller if it has less than this share of the smallest one's norm
Factor = Annotated[float, Gt(1), Le(1000)]


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The method's own parameters that a search needs, as in `inspect`."""

    epochs: int
    batch_size: int
    sample: int
    lr: float
    weight: float
    factor: float
    success: float
    patience: int


@dataclass
class Search:
    """The search for one class's patch: the weight of its mask, and when it is over.

    Attributes:
        settings: the method's own parameters.
        weight: weight of the mask's norm, 0 until `patience` epochs in a row have succeeded.
        smallest: norm of the smallest mask that succeeded.
        succeeded: epochs in a row that have succeeded since the weight was changed.
        failed: epochs in a row that have not.
        stale: epochs in a row that found no smaller mask.
        raised: whether the weight has been raised.
    """

    settings: Settings
    weight: float = 0.0
    smallest: float = float("inf")
    succeeded: int = 0
    failed: int = 0
    stale: int = 0
    raised: bool = False

    def after(self, success: float, norm: float) -> bool:
        """Take in an epoch's share of successes and the norm of its mask; whether that mask is the one to keep."""
        settings, succeeds = self.settings, success >= self.settings.success
        better = succeeds and norm < self.smallest
        self.stale = 0 if better and norm < SMALLER * self.smallest else self.stale + 1
        self.smallest = norm if better else self.smallest
        self.succeeded, self.failed = (self.succeeded + 1, 0) if succeeds else (0, self.failed + 1)
        if self.succeeded == settings.patience:
            self.succeeded, self.raised = 0, self.weight > 0
            self.weight = self.weight * settings.factor if self.raised else settings.weight
        elif self.failed == settings.patience:
            # Down in larger steps than up, as a patch that fails is of no use.
            self.failed = 0
            self.weight /= settings.factor**1.5
        return better

    @property
    def over(self) -> bool:
        # The published code also waits until the weight has been lowered. A mask of ones and zeros alone, where tanh has no
        # slope left, succeeds at any weight: its search would go on to the last epoch.
        return self.stale >= (STALE * self.settings.patience if self.raised else HOPELESS)


def inspect(
    model: Classifier,
    reserve: ImageSet,
    *,
    seed: int = 0,
    epochs: Epochs = 1000,
    batch_size: Count = 32,
    sample: Count = 1000,
    lr: Positive = 0.1,
    weight: Positive = 0.001,
    factor: Factor = 1.5,
    success: Fraction = 0.99,
    patience: Count = 5,
    threshold: Positive = 2.0,
) -> Verdict:
    """How many deviations (1.4826 times the median one) each class's mask lies below the median mask.

    Args:
        seed: seed for the patches that searches start from, and for the order of the images.
        epochs: epochs of a class's search at most; most end earlier.
        batch_size: images per step.
        sample: images per epoch, drawn anew in each; all where the reserve has fewer.
        lr: learning rate of Adam.
        weight: first weight of the mask's L1 norm, a sum over pixels.
        factor: factor of the weight while the patch succeeds, and to the power of 1.5 its divisor while it fails.
        success: share of the images that a patch must lead to the class.
        patience: epochs in a row that change the weight.
        threshold: deviations from which on a class is flagged; 2 in the paper.

    Raises:
        UserError: fewer than three classes, no trusted image, or a network whose predictions are not finite.
    """
    check_classes("neural_cleanse", model)
    if not len(reserve):
        raise ParameterError("sample: no trusted image given, allowed: a reserve of at least 1")
    settings = Settings(
        epochs=epochs,
        batch_size=batch_size,
        sample=sample,
        lr=lr,
        weight=weight,
        factor=factor,
        success=success,
        patience=patience,
    )
    network = frozen(model, pick_device())
    parts = [find_patches(network, reserve, targets, settings, seed=seed) for targets in groups(model, batch_size)]
    patches = torch.cat([patches for patches, _ in parts])
    masks = patches[:, 0]
    anomaly, rule = anomaly_index(masks.sum((1, 2)).numpy()), f"a mask {threshold:g} deviations below the median one"
    if anomaly is None:
        anomaly, rule = np.zeros(len(masks), np.float32), "none: most classes have masks of one size, the whole image's"
    return Verdict(
        anomaly,
        anomaly > threshold,
        rule,
        forward_passes=sum(passes for _, passes in parts),
        caption=CAPTION,
        aux={"masks": masks.half().numpy(), "patterns": (patches[:, 1:] * 255).round().byte().numpy()},
    )


def anomaly_index(norms: NDArray[np.float32]) -> NDArray[np.float32] | None:
    """The anomaly index of each class from its mask's norm [k]: section IV-B of the paper, negative for large masks.

    Returns:
        The index, float32 [k]; None where more than half of the norms are the same, which leaves no deviation to count in.
    """
    below = np.median(norms) - norms
    # The factor makes it the standard deviation where norms are normal.
    deviation = 1.4826 * np.median(np.abs(below))
    return None if deviation == 0 else (below / deviation).astype(np.float32)


def find_patches(
    network: nn.Module, reserve: ImageSet, targets: Tensor, settings: Settings, *, seed: int
) -> tuple[Tensor, int]:
    """The smallest patches that take trusted images to each of some classes: section IV-A of the paper.

    Adam minimises the loss of `gradient_of`, with a weight that follows each class's successes (`Search`). Success is that of
    an epoch's batches, each with the patch as it was then; the mask is the one that the epoch ends with.

    Args:
        network: network from `frozen`.
        reserve: trusted images, of all classes.
        targets: classes, int64 [a]: worked on together, with no influence on each other.
        settings: the method's own parameters.
        seed: seed of the run.

    Returns:
        Masks in the first channel and patterns in the others, float32 [a, 1 + c, h, w] in [0, 1] on the CPU, and the number
        of passes. The mask is 1 all over where no patch has led to the class: the whole image would have to be another one.

    Raises:
        UserError: predictions that are not finite.
    """
    device, shape = pick_device(), (1 + reserve.channels, *reserve.image_size)
    # theta = atanh(2 x - 1) for x uniform in [0, 1], in mask and pattern.
    starts = [torch.rand(shape, generator=torch_rng(seed, "neural_cleanse/start", int(t))) for t in targets]
    theta = torch.stack(starts).clamp(1e-6, 1 - 1e-6).mul(2).sub(1).atanh().to(device)
    first, second = torch.zeros_like(theta), torch.zeros_like(theta)
    searches = [Search(settings) for _ in targets]
    best, active, passes, step = torch.ones(theta.shape), torch.arange(len(targets)), 0, 0
    # Nearly every search ends long before the last epoch.
    what = f"neural_cleanse, {span(targets)}"
    for epoch in progress(range(settings.epochs), what=what, unit="epoch", total=settings.epochs):
        order = numpy_rng(seed, "neural_cleanse/order", epoch).permutation(len(reserve))[: settings.sample]
        weights = torch.tensor([searches[place].weight for place in active], device=device).view(-1, 1, 1, 1)
        wanted, hits = targets[active].to(device), torch.zeros(len(active), device=device)
        for start in range(0, len(order), settings.batch_size):
            images = to_float(reserve.tensor(order[start : start + settings.batch_size]), device)
            gradient, led = gradient_of(network, images, wanted, theta, weights)
            hits += led
            # Adam, elementwise and so apart for each class, with betas 0.5 and 0.9 and torch.optim.Adam's bias correction.
            step += 1
            first.lerp_(gradient, 0.5)
            second.mul_(0.9).addcmul_(gradient, gradient, value=0.1)
            root = (second / (1 - 0.9**step)).sqrt_().add_(1e-8)
            theta.addcdiv_(first, root, value=-settings.lr / (1 - 0.5**step))
        passes += 2 * len(order) * len(active)
        patches = ((theta.tanh() + 1) / 2).cpu()
        norms, shares = patches[:, 0].sum((1, 2)).tolist(), (hits / len(order)).tolist()
        check_finite("neural_cleanse", patches.numpy(), "patches", "classes")
        for place, patch, share, norm in zip(active.tolist(), patches, shares, norms, strict=True):
            if searches[place].after(share, norm):
                best[place] = patch
        going = torch.tensor([not searches[place].over for place in active])
        if not going.any():
            break
        if not going.all():
            active, kept = active[going], going.to(device)
            theta, first, second = theta[kept], first[kept], second[kept]
    return best, passes


def gradient_of(
    network: nn.Module, images: Tensor, targets: Tensor, theta: Tensor, weights: Tensor
) -> tuple[Tensor, Tensor]:
    """Gradient of each class's loss with respect to its theta, and how many images its patch leads there.

    The loss is the cross entropy to the class of (1 - m) x + m p, a mean over the images, plus the weight times |m|_1, with
    m and p each (tanh(theta) + 1) / 2.

    Args:
        network: network from images to logits, with fixed weights.
        images: images, float32 [b, c, h, w] in [0, 1].
        targets: classes, int64 [a].
        theta: masks in the first channel and patterns in the others, float32 [a, 1 + c, h, w].
        weights: weight of each mask's norm, float32 [a, 1, 1, 1].

    Returns:
        The gradient, of theta's shape, and counts, float32 [a].
    """
    patches = (theta.tanh() + 1) / 2
    masks, patterns = patches[:, :1], patches[:, 1:]
    # Each class's patch on every image by broadcasting, [a, b, c, h, w], then one long batch.
    stamped = torch.lerp(images[None], patterns[:, None], masks[:, None].expand(-1, -1, images.shape[1], -1, -1))
    stamped = stamped.flatten(0, 1).contiguous(memory_format=torch.channels_last).requires_grad_()
    with autocast(images.device):
        logits = network(stamped).float()
    labels = targets.repeat_interleave(len(images))
    (back,) = torch.autograd.grad(F.cross_entropy(logits, labels, reduction="sum") / len(images), stamped)
    # Autograd runs through the network only. From the stamped images on by hand: dx' / dp = m and dx' / dm = p - x, summed
    # over the images, of which all but x is the same for all.
    back = back.unflatten(0, (len(targets), len(images)))
    total = back.sum(1)
    to_masks = (patterns * total - (back * images).sum(1)).sum(1, keepdim=True) + weights
    # dm / dtheta = (1 - tanh(theta)^2) / 2 = 2 m (1 - m), and so for p.
    gradient = torch.cat([to_masks, masks * total], 1) * (2 * patches * (1 - patches))
    led = (logits.argmax(1) == labels).view(len(targets), -1).sum(1)
    return gradient, led


def _needs_trusted(**arguments: object) -> int:
    return 1


INSPECTOR = Inspector(inspect=inspect, needs_trusted=_needs_trusted, reverses=True)
