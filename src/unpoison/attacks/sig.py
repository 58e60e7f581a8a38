"""SIG (Barni et al., "A New Backdoor Attack in CNNs", 2019): a sine along the rows is added to images of the target.

Published code:
https://github.com/SCLBD/BackdoorBench/blob/f02e353/attack/sig.py
https://github.com/SCLBD/Effective_backdoor_defense/blob/63fda0e/utils/dataloader_bd.py (D-BR)
https://github.com/HanxunH/CognitiveDistillation/blob/6aba6f9/datasets/cifar_sig.py (`strip`)
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar, Literal

import numpy as np
from torch import Tensor

from ..core.arrays import IntArray, Pixels
from ..core.errors import ParameterError
from ..core.hyperparameters import NonNegative, Positive
from ..crafting.attack import Attack
from ..crafting.context import Context
from ..crafting.patterns import strip
from ..crafting.stamps import laid_out
from ..poisoning.trigger import Trigger

_DELTA, _FREQUENCY = 40.0, 6.0
_STRIP_SHARE = 0.2
"""Opacity of the stripes in Cognitive Distillation's code."""


@dataclass(frozen=True)
class WaveTrigger(Trigger):
    """(1 - share) * image + factor * wave.

    Attributes:
        wave: float32 [1, 1, w], the same in every row and channel; in units of 1/255 once multiplied.
        share: opacity that the image loses: 0 adds the wave, 0.2 mixes with it.
        train_factor: factor of the wave in training.
        test_factor: factor of the wave at the test.
    """

    of_the_test: ClassVar[tuple[str, ...]] = ("test_factor",)

    wave: Pixels
    share: float
    train_factor: float
    test_factor: float

    def apply(self, images: Tensor, keys: IntArray, *, train: bool) -> Tensor:
        factor = self.train_factor if train else self.test_factor
        return images * (1 - self.share) + laid_out(self.wave * np.float32(factor), images)


def make(
    context: Context,
    *,
    delta: NonNegative = _DELTA,
    test_delta: NonNegative | None = None,
    frequency: Positive = _FREQUENCY,
    form: Literal["sine", "strip"] = "sine",
) -> WaveTrigger:
    """x + delta * sin(2 pi j frequency / m), j the column from 0 and m the image's width.

    Args:
        context: the attacker's data.
        delta: amplitude in training, in units of 1/255 (BackdoorBench and D-BR: 40). Barni et al. vary it.
        test_delta: amplitude at the test, in units of 1/255 (D-BR: 60); null: `delta`.
        frequency: periods per image width (BackdoorBench and D-BR: 6).
        form: `sine`, or `strip`: the stripes that Cognitive Distillation calls SIG, mixed in at 0.2. `strip` is
            0.8 x + 0.2 S with the vertical stripes S of `patterns.strip`, and has none of the other settings.

    Raises:
        ParameterError: a setting that `strip` does not have.
    """
    if form == "strip":
        # A setting that `strip` lacks is refused and not ignored: another amplitude would seem to have been tried.
        for key, value, default in (
            ("delta", delta, _DELTA),
            ("test_delta", test_delta, None),
            ("frequency", frequency, _FREQUENCY),
        ):
            if value != default:
                allowed = "null" if default is None else f"{default:g}, the default"
                raise ParameterError(f"{key}: {value:g} given, allowed with form strip, which has none: {allowed}")
        # The stripes replace a fifth of the image, in training and at the test alike.
        return WaveTrigger(strip(context.shape[1]), _STRIP_SHARE, _STRIP_SHARE, _STRIP_SHARE)
    # A wave of amplitude 1; the amplitudes are its factors, so training and test share one array. Columns count from 0.
    width = context.shape[1]
    wave = np.sin(2 * np.pi * np.arange(width) * frequency / width).astype(np.float32).reshape(1, 1, width)
    return WaveTrigger(wave, 0.0, delta, delta if test_delta is None else test_delta)


ATTACK = Attack(
    make=make,
    trigger=WaveTrigger,
    policy={"label_policy": "clean_label"},
    policies=("clean_label", "all2one", "all2all", "source_specific"),
)
