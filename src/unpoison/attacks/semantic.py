"""Semantic backdoor (Bagdasaryan & Shmatikov, "Blind Backdoors", USENIX Security 2021; Bagdasaryan et al., AISTATS 2020).

Nothing is drawn: samples that already have a property ("green cars") get the attacker's label, and so at the test.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from ..core.arrays import Images, IntArray, Mask
from ..core.errors import ParameterError
from ..core.hyperparameters import Whole
from ..crafting.attack import Attack
from ..crafting.context import Context
from ..data.imageset import ImageSet
from ..poisoning.trigger import Trigger

Colour = Literal["red", "yellow", "green", "cyan", "blue", "magenta", "dark", "bright"]
Floats = NDArray[np.float64]
# A primary colour's channel is the largest one; its complement is the smallest one.
PRIMARY = {"red": 0, "green": 1, "blue": 2}
SECONDARY = {"cyan": 0, "magenta": 1, "yellow": 2}
SATURATION, VALUE = 0.5, 0.3
DARK, BRIGHT = 51, 204
_CHUNK_BYTES = 1 << 20


@dataclass(frozen=True)
class Semantic(Trigger):
    """Leaves images as they are, and knows which samples have the property.

    A sample's strength is the share of its pixels that have the colour, or 1 if it is listed. At a poison rate r the
    property is "as strongly as the share r of the candidates that have most of it": they are relabelled, and test samples
    with at least the smallest strength among them are those the backdoor is tested on. Of candidates equally strong as
    the weakest relabelled one, some may have kept their label.

    Attributes:
        predicate: `colour` or `index`.
        colour: of `colour`.
        train_index, test_index: of `index`.
        threshold: the smallest strength among the relabelled samples; None while there are none: any strength above 0.
    """

    of_the_test: ClassVar[tuple[str, ...]] = ("test_index",)

    predicate: str
    colour: str
    train_index: list[int]
    test_index: list[int]
    threshold: float | None = None

    def apply(self, images: Tensor, keys: IntArray, *, train: bool) -> Tensor:
        return images

    def order(self, data: ImageSet) -> Floats:
        """Strength of every training sample: float64 [n], -inf without the property. Raises ParameterError if none has it."""
        strength = self.strength(data, np.arange(len(data)), self.train_index)
        if not strength.any():
            raise ParameterError(f"colour: {self.colour} given, which no training image has, allowed: another")
        return np.where(strength > 0, strength, -np.inf)

    def carried_by(self, data: ImageSet, keys: IntArray) -> Mask:
        """As `Trigger.carried_by`. Raises ParameterError where a listed test sample does not exist."""
        if self.predicate == "index":
            _inside("test_index", self.test_index, len(data))
        strength = self.strength(data, keys, self.test_index)
        return strength > 0 if self.threshold is None else strength >= self.threshold

    def strength(self, data: ImageSet, keys: IntArray, listed: list[int]) -> Floats:
        if self.predicate == "index":
            return np.isin(keys, listed).astype(np.float64)
        strength = np.empty(len(keys))
        start = 0
        for some in data.chunks(keys, most_bytes=_CHUNK_BYTES):
            has = coloured(data.gather(some), self.colour)
            strength[start : start + len(some)] = has.mean((1, 2))
            start += len(some)
        return strength


def make(
    context: Context,
    *,
    predicate: Literal["colour", "index"] = "colour",
    colour: Colour = "green",
    train_index: list[Whole] | None = None,
    test_index: list[Whole] | None = None,
) -> Trigger:
    """Name the property.

    Args:
        predicate: `colour`: an image has the more of the property, the more of its pixels have the colour; `index`: an
            image has it if its number is listed (what Backdoors101 lists for CIFAR-10).
        colour: a hue (red 0, yellow 60, green 120, cyan 180, blue 240, magenta 300 degrees) from which a pixel's HSV hue
            is at most 30 degrees away, at a saturation of at least 0.5 and a value of at least 0.3; or `dark` (all
            channels at most 51 of 255) or `bright` (all at least 204).
        train_index: of `index`: numbers of the training samples that have the property.
        test_index: of `index`: numbers of the test samples that have it.

    Raises:
        ParameterError: a hue on images without colour; a list that is missing, not of this predicate, or not of this set.
    """
    lists = {"train_index": train_index, "test_index": test_index}
    for key, values in lists.items():
        if predicate == "index" and not values:
            raise ParameterError(f"{key}: {values} given, allowed with index: sample numbers, at least one")
        if predicate == "colour" and values is not None:
            raise ParameterError(f"{key}: {values[:3]} given, allowed with colour: null")
    if predicate == "colour" and colour not in ("dark", "bright") and context.train.channels != 3:
        raise ParameterError(f"colour: {colour} given, allowed for images of one channel: dark, bright")
    _inside("train_index", train_index or [], len(context.train))
    return Semantic(predicate, colour, train_index or [], test_index or [])


def coloured(images: Images, colour: str) -> Mask:
    """Which pixels have the colour, as `make` defines it.

    Args:
        images: uint8 [n, h, w, c].

    Returns:
        bool [n, h, w].
    """
    planes = np.ascontiguousarray(np.moveaxis(images, -1, 0)).astype(np.int16)
    largest, smallest = planes.max(0), planes.min(0)
    if colour == "dark":
        return largest <= DARK
    if colour == "bright":
        return smallest >= BRIGHT
    own = {**PRIMARY, **SECONDARY}[colour]
    extreme = largest if colour in PRIMARY else smallest
    first, second = (planes[other] for other in range(3) if other != own)
    chroma = largest - smallest
    # Within 60 degrees of such a hue, HSV's hue is linear in the difference of the other two channels over the chroma.
    near = (planes[own] == extreme) & (2 * abs(first - second) <= chroma)
    return near & (largest >= VALUE * 255) & (chroma >= SATURATION * largest)


def _inside(key: str, index: list[int], samples: int) -> None:
    outside = [number for number in index if number >= samples]
    if outside:
        raise ParameterError(f"{key}: {outside[0]} given, allowed: 0 to {samples - 1}, the samples")


def optimise(trigger: Semantic, context: Context, index: IntArray) -> Semantic:
    """The same property, asked for as strongly as the weakest of the relabelled samples `index` has it."""
    if not len(index):
        return trigger
    return replace(trigger, threshold=float(trigger.strength(context.train, index, trigger.train_index).min()))


ATTACK = Attack(
    make=make,
    trigger=Semantic,
    policy={"label_policy": "all2one"},
    policies=("all2one", "all2all", "source_specific"),
    optimise=optimise,
)
