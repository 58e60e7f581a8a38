"""Blended injection (Chen et al., "Targeted Backdoor Attacks", 2017, sec. 4): the whole image mixed with a pattern."""

from __future__ import annotations

import numpy as np

from ..core.hyperparameters import Fraction
from ..crafting.attack import Attack
from ..crafting.context import Context
from ..crafting.patterns import noise, whole_image
from ..crafting.stamps import Mix


def make(context: Context, *, pattern: str = "noise", ratio: Fraction = 0.2, test_ratio: Fraction | None = None) -> Mix:
    """(1 - ratio) * image + ratio * pattern.

    Args:
        pattern: `noise` (uniform over 0…255, drawn from the seed), `struppek_noise` (the one pattern of Struppek et
            al., uniform over 0…254, whatever the seed), `strip` (vertical stripes of about 7.85 pixels: D-BR's
            Blend-Strip and, with clean labels, Cognitive Distillation's SIG), or the path of an image file, resized
            (bilinear).
        ratio: share of the pattern in the mix in training. BackdoorBench, CD, D-BR and Struppek et al. use 0.2.
        test_ratio: the same at the test; null: `ratio`.

    Raises:
        ParameterError: the file is missing or not an image.
    """
    height, width, _ = context.shape
    drawn = (
        noise(context.shape, context.seed, "blended/noise")
        if pattern == "noise"
        else whole_image(pattern, context.shape)
    )
    opacity = np.ones((1, height, width), np.float32)
    return Mix(drawn, opacity, ratio, ratio if test_ratio is None else test_ratio)


ATTACK = Attack(
    make=make,
    trigger=Mix,
    policy={"label_policy": "all2one"},
    policies=("all2one", "all2all", "clean_label", "source_specific"),
)
