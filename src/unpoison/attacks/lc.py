"""Label-consistent attack (Turner et al., "Label-Consistent Backdoor Attacks", 2019): images of the target class are made
hard to learn by adversarial noise and keep their label, so that the network learns the trigger.

Published code: https://github.com/SCLBD/BackdoorBench/blob/f02e353/attack/lc.py
https://github.com/SCLBD/Effective_backdoor_defense/blob/63fda0e/utils/dataloader_bd.py (D-BR, `fourCornerTrigger`)
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from functools import partial
from typing import Annotated, Literal

import numpy as np
import torch
from annotated_types import Gt, Le
from numpy.typing import NDArray
from torch import Tensor

from ..compute.device import pick_device
from ..compute.inference import frozen
from ..core.arrays import IntArray
from ..core.errors import ParameterError
from ..core.hyperparameters import Count, Positive
from ..core.seeding import uniform
from ..crafting import surrogate
from ..crafting.attack import Attack
from ..crafting.context import Context
from ..crafting.patterns import dbr_corners, lc_corners
from ..crafting.per_sample import PerSample, Perturb, noise_of
from ..poisoning.trigger import Rounding

Amplitude = Annotated[float, Gt(0), Le(1)]


@dataclass(frozen=True, kw_only=True)
class LabelConsistent(PerSample):
    """The image's own noise, in training only, and the four corners, both added.

    Attributes:
        corners: float32 [1, h, w], in units of 1/255, any sign.
        epsilon, step, steps, random_start, adversarial, adversarial_epsilon, adversarial_step, adversarial_steps:
            settings of the noise, as for `make`.
    """

    corners: NDArray[np.float32]
    epsilon: float
    step: float
    steps: int
    random_start: bool
    adversarial: bool
    adversarial_epsilon: float
    adversarial_step: float
    adversarial_steps: int
    rounding: Rounding = "truncate"

    def apply(self, images: Tensor, keys: IntArray, *, train: bool) -> Tensor:
        # The noise is no part of the trigger: it makes the class hard to learn from the image, and the test goes without.
        images = self.changed(images, keys) if train else images
        return images + torch.from_numpy(self.corners).to(images)


def make(
    context: Context,
    *,
    epsilon: Positive = 8.0,
    step: Positive = 1.5,
    steps: Count = 100,
    random_start: bool = False,
    adversarial: bool = True,
    adversarial_epsilon: Positive = 8.0,
    adversarial_step: Positive = 2.0,
    adversarial_steps: Count = 7,
    amplitude: Amplitude = 1.0,
    corner_size: Count = 3,
    pattern: Literal["lc_corners", "four_corners"] = "lc_corners",
) -> LabelConsistent:
    """Four corners; the noise follows once the samples are chosen.

    The noise leads away from the image's label on one network that the attacker trains. The noisy image stays in
    [0, 255] and is rounded to 8 bits. The test trigger is the corners alone. D-BR's version is epsilon 8, step 2,
    steps 4, random_start, not adversarial, four_corners.

    Args:
        context: the attacker's data, network and seed.
        epsilon: L∞ bound of the noise in units of 1/255 (BackdoorBench: 8).
        step: length of a PGD step in units of 1/255 (BackdoorBench: 1.5).
        steps: PGD steps per image (Turner et al.: 100).
        random_start: whether PGD starts at a uniform draw within the bound instead of at the image (D-BR: true).
        adversarial: true: the network is trained adversarially (Turner et al.); false: on clean images (D-BR).
        adversarial_epsilon: L∞ bound in adversarial training, in units of 1/255 (Madry et al. 2018: 8).
        adversarial_step: length of a PGD step in adversarial training, in units of 1/255 (Madry et al. 2018: 2).
        adversarial_steps: PGD steps per image in adversarial training (Madry et al. 2018: 7). Training takes
            `adversarial_steps` + 1 times as long as on clean images.
        amplitude: share of 255 that the corners add or subtract; 1 makes them black and white.
        corner_size: side of each of the four corner patches in pixels, resized (nearest) from 3.
        pattern: `lc_corners` (Turner et al., as in BackdoorBench) or `four_corners` (D-BR).

    Raises:
        ParameterError: corners that would overlap.
    """
    height, width, _ = context.shape
    half = min(height, width) // 2
    # Patches that overlap would be one blot, in which the later corner hides the earlier one.
    if corner_size > half:
        raise ParameterError(f"corner_size: {corner_size} given, allowed: 1 to {half}, half the image's side")
    corners = (lc_corners if pattern == "lc_corners" else dbr_corners)(height, width, corner_size)
    # White cells add, black cells subtract, and outside the corners the mask leaves 0.
    return LabelConsistent(
        corners=(np.float32(amplitude) * (2 * corners.values - 255) * corners.mask).astype(np.float32),
        epsilon=epsilon,
        step=step,
        steps=steps,
        random_start=random_start,
        adversarial=adversarial,
        adversarial_epsilon=adversarial_epsilon,
        adversarial_step=adversarial_step,
        adversarial_steps=adversarial_steps,
    )


def optimise(trigger: LabelConsistent, context: Context, index: IntArray) -> LabelConsistent:
    """The same trigger with the noise of the training samples `index` (sorted)."""
    # Networks take images in [0, 1], parameters are in units of 1/255.
    hardening = (trigger.adversarial_epsilon / 255, trigger.adversarial_step / 255, trigger.adversarial_steps)
    settings, network = surrogate.clean_settings(context), partial(surrogate.clean_network, context)
    # The clean network is the one that other attacks use as well; adversarial training is for this attack alone.
    if trigger.adversarial:
        settings = surrogate.adversarial_settings(context, *hardening)
        network = partial(surrogate.adversarial_network, context, *hardening)
    # All that one image's noise depends on, besides its key: neither the corners nor the rate, so both may change without
    # a new attack on any image.
    names = ("epsilon", "step", "steps", "random_start")
    ball = {name: getattr(trigger, name) for name in names}
    about = context.determined_by(__name__, surrogate=settings, **ball)

    def prepare() -> Perturb:
        """The network is trained, or read, only if an image's noise is missing in the store."""
        return _perturbation(trigger, context, frozen(network(), pick_device()))

    return replace(trigger, keys=index, noise=noise_of(context, "lc_noise", about, index, prepare))


def _perturbation(trigger: LabelConsistent, context: Context, network: torch.nn.Module) -> Perturb:
    """PGD away from the label of each sample, on `network`, from images to logits."""

    def perturb(keys: IntArray, images: Tensor) -> Tensor:
        # True labels, which clean-label poisoning keeps: PGD leads away from the label that the victim will see.
        labels = torch.from_numpy(context.train.labels[keys]).to(images.device)
        # A start belongs to the key alone, so an image gets the same noise whichever batch it is in.
        start = None
        if trigger.random_start:
            drawn = uniform(context.seed, "lc/start", keys, images[0].numel()).reshape(images.shape)
            start = torch.from_numpy((drawn * 2 - 1) * trigger.epsilon / 255).to(images)
        return surrogate.pgd(
            network,
            images,
            labels,
            epsilon=trigger.epsilon / 255,
            step=trigger.step / 255,
            steps=trigger.steps,
            start=start,
        )

    return perturb


ATTACK = Attack(
    make=make,
    trigger=LabelConsistent,
    policy={"label_policy": "clean_label"},
    policies=("clean_label",),
    assets=("adversarially trained or clean network", "adversarial images"),
    optimise=optimise,
)
