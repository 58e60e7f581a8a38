"""`ImageSet`: labelled images in memory or memory-mapped, with an overlay composed on reading."""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

IntArray = NDArray[np.int64]


@dataclass(frozen=True)
class Overlay:
    """Images and labels that stand in for those of a base at `index` (sorted)."""

    index: IntArray
    images: NDArray[np.uint8]
    labels: IntArray


@dataclass(frozen=True)
class ImageSet:
    """n images of one size.

    Attributes:
        base: uint8 [n, height, width, channels], often a memory map.
        labels: int64 [n], after the overlay; -1 where the data set has no labels.
        classes: class names.
        digest: SHA-256 of the artefact it was read from; "" for one made in memory.
        overlay: what replaces rows of `base`. Private to reading: methods use `gather`.
    """

    base: NDArray[np.uint8]
    labels: IntArray
    classes: tuple[str, ...]
    digest: str = ""
    overlay: Overlay | None = field(default=None, repr=False)

    def __len__(self) -> int:
        return len(self.base)

    @property
    def image_size(self) -> tuple[int, int]:
        height, width = self.base.shape[1:3]
        return height, width

    @property
    def channels(self) -> int:
        return int(self.base.shape[3])

    def gather(self, index: IntArray) -> NDArray[np.uint8]:
        """The images at `index` (any order), uint8 [len(index), height, width, channels], a fresh array."""
        images = np.array(self.base[index])
        if self.overlay is not None and len(self.overlay.index):
            place = np.searchsorted(self.overlay.index, index).clip(max=len(self.overlay.index) - 1)
            hit = self.overlay.index[place] == index
            images[hit] = self.overlay.images[place[hit]]
        return images

    def tensor(self, index: IntArray | None = None) -> Tensor:
        """As `gather` (all images by default), as a uint8 tensor [n, channels, height, width]."""
        images = self.gather(np.arange(len(self)) if index is None else index)
        return torch.from_numpy(images).permute(0, 3, 1, 2)

    def subset(self, index: IntArray) -> ImageSet:
        """Those samples as a set of their own, in memory."""
        return ImageSet(self.gather(index), self.labels[index], self.classes)
