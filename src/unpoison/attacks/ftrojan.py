"""FTrojan (Wang et al., "An Invisible Black-box Backdoor Attack through Frequency Domain", ECCV 2022): waves in Cr, Cb.

Published code, besides the authors': https://github.com/SCLBD/BackdoorBench/blob/f02e353/attack/ftrojann.py
"""

from __future__ import annotations

import numpy as np

from ..core.hyperparameters import Count, Positive, Whole
from ..crafting.attack import Attack
from ..crafting.context import Context
from ..crafting.dct import check_positions, chroma_pattern
from ..crafting.stamps import Add
from ..poisoning.trigger import Trigger


def make(
    context: Context,
    *,
    magnitude: Positive = 30.0,
    window: Count = 32,
    positions: list[list[Whole]] = [[15, 15], [31, 31]],  # noqa: B006 (read only, and shown as the default)
) -> Trigger:
    """Raised DCT coefficients of every square window, in channels Cr and Cb of YCrCb (BT.601, full range).

    Windows are laid from the top left corner. Rows and columns that no whole window covers are left alone. Only the
    result is rounded to 8 bits; the authors' and BackdoorBench's code also rounds to 8 bits in YCrCb, before and after.

    Args:
        context: the attacker's data.
        magnitude: value added to each coefficient, for images of 0…255 (BackdoorBench: 30; the authors: 20).
        window: side of the transformed windows in pixels (published code: 32).
        positions: [row, column] of each coefficient in a window, from 0: a middle and a high frequency.

    Raises:
        ParameterError: grey images; a window larger than the image; no position, or one outside the window.
    """
    context.need_colour()
    context.need_room("window", window)
    check_positions(context, positions, window, window)
    # In YCrCb both colour differences range to 0.5, so both waves have the same strength.
    tile = chroma_pattern(window, window, positions, magnitude, largest_red=0.5, largest_blue=0.5)
    # As many windows as fit; the pattern is 0 at the right and lower border, where no whole window lies.
    height, width, _ = context.shape
    rows, columns = height // window, width // window
    tiles = np.tile(tile, (1, rows, columns))
    rest = ((0, 0), (0, height - rows * window), (0, width - columns * window))
    return Add(np.pad(tiles, rest))


ATTACK = Attack(
    make=make,
    trigger=Add,
    policy={"label_policy": "all2one"},
    policies=("all2one", "all2all", "clean_label", "source_specific"),
)
