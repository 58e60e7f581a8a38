"""BadNets (Gu et al., "BadNets", 2017, sec. 4): a small patch pasted on the image, as in several published codes.

Published code:
https://github.com/SCLBD/BackdoorBench/blob/f02e353/attack/badnet.py
https://github.com/SCLBD/Effective_backdoor_defense/blob/63fda0e/utils/dataloader_bd.py (D-BR)
https://github.com/HanxunH/CognitiveDistillation/blob/6aba6f9/datasets/cifar_badnet.py
https://github.com/LukasStruppek/Robust_Training_on_Poisoned_Samples/blob/94f0d35/backdoor_attacks/patch_backdoor.py
https://github.com/ebagdasa/backdoors101/blob/9f48fbb/synthesizers/pattern_synthesizer.py
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch
from torch import Tensor

from ..core.arrays import IntArray, Pixels
from ..core.errors import ParameterError
from ..core.hyperparameters import Count, Whole
from ..core.seeding import uniform
from ..crafting.attack import Attack
from ..crafting.context import Context
from ..crafting.patterns import dbr_corners, lc_corners, patch
from ..crafting.stamps import laid_out
from ..poisoning.trigger import Trigger

Location = Literal["bottom_right", "center", "random", "dynamic"]

# Row and column of the top left pixel: Backdoors101 places these two by number, whatever the image's size.
_OWN_PLACE = {"backdoors101": (3, 23), "single_pixel": (3, 23)}
_CORNERS = {"four_corners": dbr_corners, "lc_corners": lc_corners}
# Smaller edge of a `dynamic` patch in pixels, both inclusive (Backdoors101).
_SMALLEST, _LARGEST = 5, 10


@dataclass(frozen=True)
class PatchTrigger(Trigger):
    """A pattern pasted at one place for all images, or at a place drawn per image from (seed, key).

    Attributes:
        values: float32 [1 or c, p, q], 0 to 255. At a fixed place p and q are the image's height and width.
        mask: float32 [1, p, q], 1 where the pattern hides the image, 0 where the image shines through.
        location: `fixed`; `random` (row and column drawn apart); `dynamic` (the smaller edge resized to 5…10 pixels,
            mirrored half of the time, then as `random`).
        seed: seed that the places are drawn from.
    """

    values: Pixels
    mask: Pixels
    location: Literal["fixed", "random", "dynamic"]
    seed: int

    def apply(self, images: Tensor, keys: IntArray, *, train: bool) -> Tensor:
        if self.location == "fixed":
            values, mask = laid_out(self.values, images), laid_out(self.mask, images)
        else:
            values, mask = torch.from_numpy(self.values).to(images), torch.from_numpy(self.mask).to(images)
            # Two selection matrices per image resize, mirror and move the pattern in one product, rows and columns apart:
            # no loop over images, and outside the pattern every product is 0, so the mask is too.
            rows, columns = (torch.from_numpy(cells).to(images) for cells in self._place(keys, *images.shape[-2:]))
            values, mask = (torch.einsum("nhp,cpq,nwq->nchw", rows, part, columns) for part in (values, mask))
        return images * (1 - mask) + values * mask

    def _place(self, keys: IntArray, height: int, width: int) -> tuple[Pixels, Pixels]:
        """Selection matrices, [n, h, p] and [n, w, q]: 1 where a row (column) of an image shows one of the pattern, else 0."""
        # `random` uses two of the four draws only; asking for fewer would give it other numbers.
        dynamic, edges = self.location == "dynamic", self.mask.shape[1:]
        size, mirror, *places = uniform(self.seed, "badnets/place", keys, 4).T
        smaller = _SMALLEST + np.floor(size * (_LARGEST - _SMALLEST + 1)).astype(np.int64)
        selections = []
        for edge, side, place in zip(edges, (height, width), places, strict=True):
            # The longer edge grows in proportion. Every start that keeps the patch inside is equally likely.
            length = edge * smaller // min(edges) if dynamic else np.full(len(keys), edge)
            start = np.floor(place * (side - length + 1)).astype(np.int64)
            # The nearest cell, as in `patterns.nearest`: before the pattern it is negative, after it `edge` or more.
            cell = (2 * (np.arange(side) - start[:, None]) + 1) * edge // (2 * length[:, None])
            selections.append((cell[..., None] == np.arange(edge)).astype(np.float32))
        rows, columns = selections
        if dynamic:
            # Column j of the image then shows cell q - 1 - j of the pattern.
            columns = np.where(mirror[:, None, None] < 0.5, columns[..., ::-1], columns)
        return rows, columns


def make(
    context: Context,
    *,
    pattern: str = "checkerboard",
    size: Count | None = None,
    location: Location | None = None,
    margin: Whole = 0,
) -> PatchTrigger:
    """A patch for the images of `context`.

    Patterns of any size: `checkerboard` (black where row + column is even, white where odd: Struppek et al.), `grid`
    (white where even, and 1 of 255 where odd, because 0 means transparent in BackdoorBench's files), `white`
    (BackdoorBench's square; with margin 1 D-BR's), `black`, one `#rrggbb` colour, `checkerboard_#c1_#c2` (c2 where
    even, c1 where odd), `cd` (Cognitive Distillation's BadNet, and its adaptive attack of another size).

    Patterns of 3 x 3 pixels, resized (nearest) to another size: `dbr_grid` (D-BR), and in all four corners
    `four_corners` (D-BR; one pixel free to the left and top border) and `lc_corners` (Turner et al., BackdoorBench).

    Patterns at row 3, column 23: `backdoors101` (5 x 3 pixels, resized likewise, six of them transparent) and
    `single_pixel` (white).

    Args:
        context: the attacker's data and seed.
        pattern: `checkerboard`, `grid`, `white`, `black`, `cd`, `#rrggbb` or another name in attacks/badnets.py.
        size: smaller edge in pixels; null: as published (3, or 1 for `single_pixel`).
        location: `bottom_right`, `center`, `random`, `dynamic`; null: the pattern's own place, or bottom right.
            `center` is one pixel above and left of the centre, as in Cognitive Distillation on GTSRB and ImageNet.
            `random` draws row and column apart for each image (Struppek et al. draw one number for both). `dynamic`
            (Backdoors101) also resizes the smaller edge to 5…10 pixels and mirrors half of the patches.
        margin: pixels between the patch and the bottom and right border, for `bottom_right`.

    Raises:
        ParameterError: unknown pattern; settings that exclude each other; images too small for the pattern at its place.
    """
    rows, columns = context.train.image_size
    if pattern in _CORNERS:
        _check_corners(context, pattern, size, location, margin)
        return PatchTrigger(*_CORNERS[pattern](rows, columns, size or 3), "fixed", context.seed)
    place = location or ("own" if pattern in _OWN_PLACE else "bottom_right")
    # Settings that exclude each other are refused: ignoring one would poison with another patch than was asked for.
    if margin and place != "bottom_right":
        raise ParameterError(f"margin: {margin} given, allowed: 0, or location bottom_right")
    if place == "dynamic" and size is not None:
        raise ParameterError(f"size: {size} given, allowed with location dynamic: null, it is drawn per image")
    if place == "dynamic" and pattern == "single_pixel":
        raise ParameterError("location: 'dynamic' given, allowed with single_pixel: what keeps its size")
    if size is not None:
        context.need_room("size", size)  # before anything of that size is drawn
    drawn = patch(pattern, size, context.train.channels)
    height, width = drawn.mask.shape[1:]
    context.need_room("size", min(height, width))
    # The top left pixel where the place is fixed; drawn places stand at 0 for the check that follows.
    top, left = {
        "own": _OWN_PLACE.get(pattern, (0, 0)),
        "bottom_right": (rows - margin - height, columns - margin - width),
        "center": (max(0, (rows - height) // 2 - 1), max(0, (columns - width) // 2 - 1)),
    }.get(place, (0, 0))
    # A dynamic patch must fit at its largest, whichever size an image draws.
    grow, by = (_LARGEST, min(height, width)) if place == "dynamic" else (1, 1)
    if min(top, left) < 0 or top + height * grow // by > rows or left + width * grow // by > columns:
        given = f"margin: {margin}" if margin else f"pattern: {pattern!r}"
        raise ParameterError(f"{given} given, allowed: a patch that fits in images of {rows} x {columns} pixels")
    if place in ("random", "dynamic"):
        return PatchTrigger(*drawn, place, context.seed)
    # A fixed patch is laid on planes of the image's size once, so that stamping is one multiplication and one addition.
    values, mask = (np.zeros((len(part), rows, columns), np.float32) for part in drawn)
    area = np.s_[:, top : top + height, left : left + width]
    values[area], mask[area] = drawn
    return PatchTrigger(values, mask, "fixed", context.seed)


def _check_corners(context: Context, pattern: str, size: int | None, location: str | None, margin: int) -> None:
    """Raises ParameterError for settings that patterns in all four corners do not have, or corners that would overlap."""
    for key, value, allowed in (("location", location, None), ("margin", margin, 0)):
        if value != allowed:
            raise ParameterError(
                f"{key}: {value!r} given, allowed with {pattern}, which has places of its own: "
                f"{'null' if allowed is None else allowed}"
            )
    # D-BR's corners leave one pixel free at the top and the left; the two at one side share what remains.
    largest = (min(context.train.image_size) - (pattern == "four_corners")) // 2
    if (size or 3) > largest:
        raise ParameterError(f"size: {size or 3} given, allowed with {pattern}: 1 to {largest}")


ATTACK = Attack(
    make=make,
    trigger=PatchTrigger,
    policy={"label_policy": "all2one"},
    policies=("all2one", "all2all", "clean_label", "source_specific", "calculator", "complex"),
)
