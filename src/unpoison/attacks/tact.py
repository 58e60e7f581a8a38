"""TaCT (Tang et al., "Demon in the Variant", USENIX Security 2021): a patch that works on one source class only.

Images of the source class with the patch get the target label; cover samples, of other classes, carry the patch and keep
theirs. The patch alone then means nothing, and patched images keep features of the class they show.

Published code: https://github.com/vtu81/backdoor-toolbox/blob/9d4d909/poison_tool_box/TaCT.py
"""

from __future__ import annotations

import numpy as np

from ..core.hyperparameters import Count
from ..crafting.attack import Attack
from ..crafting.context import Context
from ..crafting.stamps import Mix
from ..poisoning.trigger import Trigger


def make(context: Context, *, size: Count = 8) -> Trigger:
    """A white square in the bottom right corner, in training and at the test.

    Args:
        context: the attacker's data.
        size: side of the square in pixels (the patch of Qi et al.'s toolbox: 8 of 32).

    Raises:
        ParameterError: a square larger than the image.
    """
    context.need_room("size", size)
    height, width, channels = context.shape
    # Opaque in the square and transparent elsewhere: a patch is a mix of opacity 1.
    opacity = np.zeros((1, height, width), np.float32)
    opacity[:, height - size :, width - size :] = 1
    return Mix(np.full((channels, height, width), 255, np.float32), opacity)


ATTACK = Attack(
    make=make,
    trigger=Mix,
    policy={
        "label_policy": "source_specific",
        # The toolbox's classes; covers teach the victim that the patch means nothing on images of other classes.
        "sources": [1],
        "cover_classes": [5, 7],
        "cover_ratio": 1.0,
    },
    policies=("source_specific",),
)
