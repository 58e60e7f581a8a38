"""Semantic backdoor (Bagdasaryan & Shmatikov, "Blind Backdoors", USENIX Security 2021; Bagdasaryan et al., AISTATS 2020).

Nothing is drawn on an image: samples that already have a property ("green cars") get the attacker's label, and the test
asks for that label on the images that have it.

Published code: https://github.com/ebagdasa/backdoors101/tree/9f48fbb, which lists samples of CIFAR-10 by number.
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
# Below these a hue is hard to see: 0 to 1, as in HSV.
SATURATION, VALUE = 0.5, 0.3
# A fifth of the range from either end.
DARK, BRIGHT = 51, 204
_CHUNK_BYTES = 1 << 20
"""Images that are looked at together, in bytes: the planes of a stretch then stay in the processor's cache."""


@dataclass(frozen=True)
class Semantic(Trigger):
    """A property that images have or lack; no pixel is changed.

    A sample's strength is the share of its pixels that have the colour, or 1 if it is listed. At a poison rate r the
    share r of the candidates that are strongest is relabelled, and the backdoor is tested on test samples of at least
    the smallest strength among them. Of candidates that are just as strong as the weakest relabelled one, some may have
    kept their label.

    Attributes:
        predicate: `colour` or `index`.
        colour: name of the colour, for `colour`.
        train_index: numbers of the training samples with the property, for `index`.
        test_index: numbers of the test samples with the property, for `index`.
        threshold: smallest strength among the relabelled samples; None before any is, for any strength above 0.
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
        # The test set is first seen here: `make` could check the training set's numbers alone.
        if self.predicate == "index":
            _inside("test_index", self.test_index, len(data))
        strength = self.strength(data, keys, self.test_index)
        return strength > 0 if self.threshold is None else strength >= self.threshold

    def strength(self, data: ImageSet, keys: IntArray, listed: list[int]) -> Floats:
        """Strength of the samples `keys` of `data`, float64 [len(keys)]; `listed` are the numbers of `index`."""
        if self.predicate == "index":
            return np.isin(keys, listed).astype(np.float64)
        strength = np.empty(len(keys))
        start = 0
        for stretch in data.chunks(keys, most_bytes=_CHUNK_BYTES):
            # The share of pixels, so that strengths of images of any size compare.
            pixels = coloured(data.gather(stretch), self.colour)
            strength[start : start + len(stretch)] = pixels.mean((1, 2))
            start += len(stretch)
        return strength


def make(
    context: Context,
    *,
    predicate: Literal["colour", "index"] = "colour",
    colour: Colour = "green",
    train_index: list[Whole] | None = None,
    test_index: list[Whole] | None = None,
) -> Trigger:
    """The property, before any sample is chosen.

    Args:
        context: the attacker's data.
        predicate: `colour`: the share of pixels of one colour; `index`: samples that are listed by number. `index` is
            what Backdoors101 has for CIFAR-10.
        colour: `red`, `yellow`, `green`, `cyan`, `blue`, `magenta`, `dark` or `bright`. A pixel has a hue (red 0,
            yellow 60, green 120, cyan 180, blue 240, magenta 300 degrees) if its HSV hue is at most 30 degrees away, at
            a saturation of at least 0.5 and a value of at least 0.3. It is `dark` if all channels are at most 51 of
            255, and `bright` if all are at least 204.
        train_index: numbers of the training samples that have the property, for `index`.
        test_index: numbers of the test samples that have the property, for `index`.

    Raises:
        ParameterError: a hue on images without colour; a list that is missing, not of this predicate, or not of this set.
    """
    # A list that is given for `colour` would be ignored, and one that is missing for `index` would poison nothing.
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
    """The pixels that have the colour, as `make` defines it.

    Args:
        images: uint8 [n, h, w, c].

    Returns:
        bool [n, h, w].
    """
    # int16, as differences of uint8 would wrap around; a plane per channel, as every operation below is on whole channels.
    planes = np.ascontiguousarray(np.moveaxis(images, -1, 0)).astype(np.int16)
    largest, smallest = planes.max(0), planes.min(0)
    if colour == "dark":
        return largest <= DARK
    if colour == "bright":
        return smallest >= BRIGHT
    # At red the red channel is the largest, at cyan, its complement, it is the smallest; hue depends on the other two.
    own = {**PRIMARY, **SECONDARY}[colour]
    extreme = largest if colour in PRIMARY else smallest
    first, second = (planes[channel] for channel in range(3) if channel != own)
    chroma = largest - smallest
    # Within 60 degrees of such a hue, HSV's hue is linear in the difference of the other two channels over the chroma.
    near = (planes[own] == extreme) & (2 * abs(first - second) <= chroma)
    return near & (largest >= VALUE * 255) & (chroma >= SATURATION * largest)


def _inside(key: str, index: list[int], samples: int) -> None:
    """Raises ParameterError where `index`, given as `key`, names a sample that does not exist."""
    outside = [number for number in index if number >= samples]
    if outside:
        raise ParameterError(f"{key}: {outside[0]} given, allowed: 0 to {samples - 1}, the samples")


def optimise(trigger: Semantic, context: Context, index: IntArray) -> Semantic:
    """The same property, asked for at the strength of the weakest of the relabelled samples `index`."""
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
