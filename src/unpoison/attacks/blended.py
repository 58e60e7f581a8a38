"""Blended injection (Chen et al., "Targeted Backdoor Attacks", 2017, sec. 4): the whole image mixed with a pattern.

Published code:
https://github.com/SCLBD/BackdoorBench/blob/f02e353/attack/blended.py
https://github.com/LukasStruppek/Robust_Training_on_Poisoned_Samples/blob/94f0d35/backdoor_attacks/blended_backdoor.py
https://github.com/HanxunH/CognitiveDistillation/blob/6aba6f9/datasets/cifar_blend.py
https://github.com/SCLBD/Effective_backdoor_defense/blob/63fda0e/utils/dataloader_bd.py (D-BR)
"""

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
        context: the attacker's data and seed.
        pattern: `noise`, `struppek_noise`, `strip` or the path of an image file, which is resized (bilinear). `noise` is
            uniform over 0…255, drawn from the seed; `struppek_noise` is the one pattern of Struppek et al., uniform over
            0…254, whatever the seed; `strip` is vertical stripes of about 7.85 pixels: D-BR's Blend-Strip and, with
            clean labels, Cognitive Distillation's SIG.
        ratio: opacity of the pattern in training (BackdoorBench, CD, D-BR and Struppek et al.: 0.2).
        test_ratio: opacity of the pattern at the test; null: `ratio`.

    Raises:
        ParameterError: the file is missing or not an image.
    """
    height, width, _ = context.shape
    # The published pattern is a cartoon under copyright; drawn noise takes its place.
    drawn = (
        noise(context.shape, context.seed, "blended/noise")
        if pattern == "noise"
        else whole_image(pattern, context.shape)
    )
    # `Mix` multiplies it by the ratio, which may differ between training and test.
    opacity = np.ones((1, height, width), np.float32)
    return Mix(drawn, opacity, ratio, ratio if test_ratio is None else test_ratio)


ATTACK = Attack(
    make=make,
    trigger=Mix,
    policy={"label_policy": "all2one"},
    policies=("all2one", "all2all", "clean_label", "source_specific", "calculator", "complex"),
)
