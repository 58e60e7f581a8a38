"""Feature collision (Shafahi et al., "Poison Frogs! Targeted Clean-Label Poisoning Attacks on Neural Networks", NeurIPS
2018, sections 2 and 4), made a backdoor: target-class images with the features of patched images of other classes.

Poison Frogs itself has no trigger: it aims at one test image. Cognitive Distillation's attack of this name reads images
that were made elsewhere by an unknown recipe, for class 1, and tests on such images; only the idea is the same:
https://github.com/HanxunH/CognitiveDistillation/blob/6aba6f9/datasets/cifar_fc.py
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..compute.device import pick_device, to_float
from ..core.arrays import IntArray, Pixels
from ..core.errors import UserError
from ..core.hyperparameters import Count, Fraction, NonNegative, Positive
from ..core.seeding import numpy_rng, uniform
from ..crafting import surrogate
from ..crafting.attack import Attack
from ..crafting.context import Context
from ..crafting.per_sample import PerSample, Perturb, noise_of
from ..poisoning.trigger import Rounding


@dataclass(frozen=True, kw_only=True)
class FeatureCollision(PerSample):
    """In training the optimised image; at the test the patch in the lower right corner.

    Attributes:
        patch: the pattern of the test trigger, float32 [c, size, size], 0 to 255.
        steps, lr, beta, watermark, epsilon: settings of the optimisation, as for `make`.
    """

    patch: Pixels
    steps: int
    lr: float
    beta: float
    watermark: float
    epsilon: float | None
    rounding: Rounding = "truncate"

    def apply(self, images: Tensor, keys: IntArray, *, train: bool) -> Tensor:
        return self.changed(images, keys) if train else self.patched(images)

    def patched(self, images: Tensor) -> Tensor:
        """Copies of images of 0…255 with the patch."""
        images, size = images.clone(), self.patch.shape[-1]
        images[..., -size:, -size:] = torch.from_numpy(self.patch).to(images)
        return images


def make(
    context: Context,
    *,
    size: Count = 8,
    steps: Count = 100,
    lr: Positive = 0.01,
    beta: NonNegative = 0.1,
    watermark: Fraction = 0.3,
    epsilon: Positive | None = None,
) -> FeatureCollision:
    """A patch; the optimised images follow once the samples are chosen.

    For each chosen image b of the target class an image of another class is drawn and patched (Saha et al., "Hidden
    Trigger Backdoor Attacks", AAAI 2020); call it t. The optimisation starts from the watermarked image
    b' = (1 - watermark) b + watermark t, as in section 4 of Poison Frogs for networks trained from scratch, and finds
    the x that minimises ||f(x) - f(t)||² + beta ||x - b'||², with f the penultimate features of the attacker's own
    clean network. The patch has 4 x 4 random colours, enlarged (bilinear), and always lies in the lower right corner.

    Args:
        context: the attacker's data, network and seed; `target` is the class of the optimised images.
        size: side of the patch in pixels (Saha et al. on CIFAR-10: 8).
        steps: largest number of steps of forward-backward splitting (our choice).
        lr: first step size, for images in [0, 1] (our choice). A step that would raise the objective is not taken, and
            the size is halved from then on for that image.
        beta: weight of the squared distance to the watermarked image b', in [0, 1] (our choice).
        watermark: opacity of the patched image t in the watermarked image b' (Poison Frogs: 0.3).
        epsilon: L∞ bound of the change of b' in units of 1/255 (Saha et al.: 16, with watermark 0); null: no bound.

    Raises:
        ParameterError: a patch larger than the image, no training image of another class.
    """
    context.need_room("size", size)
    if (context.train.labels == context.target).all():
        raise UserError(
            f"data: every training image is of the target class {context.target}; allowed: other classes too"
        )
    # Always 16 colours, so that another size enlarges the same patch.
    colours = numpy_rng(context.seed, "feature_collision/patch").uniform(0, 255, (1, context.train.channels, 4, 4))
    patch = F.interpolate(torch.from_numpy(colours), (size, size), mode="bilinear")[0].floor()
    return FeatureCollision(
        patch=patch.numpy().astype(np.float32),
        steps=steps,
        lr=lr,
        beta=beta,
        watermark=watermark,
        epsilon=epsilon,
    )


def collide(
    features: nn.Module,
    images: Tensor,
    shown: Tensor,
    *,
    steps: int,
    lr: float,
    beta: float,
    watermark: float,
    epsilon: float | None,
) -> Tensor:
    """Forward-backward splitting (Poison Frogs, section 2), all images at once and each with its own step size.

    Args:
        features: images to penultimate features; its weights need no gradients.
        images: the images b, float32 [n, c, h, w] in [0, 1].
        shown: the images t, as `images`.
        steps, lr, beta, watermark, epsilon: as for `make`.

    Returns:
        The images x, as `images`.
    """
    # The box that x must stay in: images in [0, 1], within epsilon of the watermarked one.
    base = (1 - watermark) * images + watermark * shown
    room = 1.0 if epsilon is None else epsilon / 255
    low, high = (base - room).clamp(min=0), (base + room).clamp(max=1)
    with torch.no_grad():
        goal = features(shown)

    def objective(candidate: Tensor) -> tuple[Tensor, Tensor]:
        """Value of the objective [n], and gradient of its first term alone, which is all the forward step needs."""
        candidate.requires_grad_()
        # Images do not mix, so the gradient of the sum holds the gradient of each.
        distance = (features(candidate) - goal).square().sum(1)
        (gradient,) = torch.autograd.grad(distance.sum(), candidate)
        candidate.requires_grad_(False)
        return distance.detach() + beta * (candidate - base).square().sum((1, 2, 3)), gradient

    # Step sizes are [n, 1, 1, 1]: an image that has to go slowly must not hold up the others.
    best, rate = base.clone(), torch.full((len(base), 1, 1, 1), lr, device=base.device)
    value, gradient = objective(best)
    for _ in range(steps):
        pull = 2 * beta * rate
        # Forward: a gradient step on the features' distance. Backward: the minimum of the rest in closed form; for a
        # quadratic and bounds on each pixel it is the quadratic's minimum, clipped.
        candidate = ((best - rate * gradient + pull * base) / (1 + pull)).clamp(low, high)
        reached, slope = objective(candidate)
        # An image whose objective would rise stays where it is and tries half the step next time.
        lower = reached <= value
        taken = lower[:, None, None, None]
        best, gradient = torch.where(taken, candidate, best), torch.where(taken, slope, gradient)
        value, rate = torch.where(lower, reached, value), torch.where(taken, rate, rate / 2)
    return best


def optimise(trigger: FeatureCollision, context: Context, index: IntArray) -> FeatureCollision:
    """The same trigger with the optimised images of the training samples `index` (sorted)."""
    # All that one optimised image depends on, besides its key: the rate and the other images are not among it, so a
    # higher rate takes from the store what a lower one has made.
    names = ("steps", "lr", "beta", "watermark", "epsilon")
    settings: dict[str, Any] = {name: getattr(trigger, name) for name in names}
    about = context.determined_by(
        __name__,
        surrogate=surrogate.clean_settings(context),
        target=context.target,
        size=trigger.patch.shape[-1],
        **settings,
    )

    def prepare() -> Perturb:
        """The network is trained, or read, only if an image is missing in the store."""
        features = surrogate.frozen_features(surrogate.clean_network(context), pick_device())
        sources = np.flatnonzero(context.train.labels != context.target)

        def perturb(keys: IntArray, images: Tensor) -> Tensor:
            # The source image belongs to the key alone, whichever batch the key is in.
            drawn = uniform(context.seed, "feature_collision/source", keys, 1)[:, 0]
            source = context.train.tensor(sources[(drawn * len(sources)).astype(np.int64)])
            # The patch is of 0…255, the network's images are of [0, 1].
            shown = trigger.patched(to_float(source, images.device) * 255) / 255
            return collide(features, images, shown, **settings)

        return perturb

    return replace(trigger, keys=index, noise=noise_of(context, "feature_collision_noise", about, index, prepare))


ATTACK = Attack(
    make=make,
    trigger=FeatureCollision,
    policy={"label_policy": "clean_label"},
    policies=("clean_label",),
    assets=("clean network", "optimised images"),
    optimise=optimise,
)
