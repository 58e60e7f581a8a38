"""`ImageSet`: labelled images in memory or memory-mapped, with an overlay composed on reading."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

import numpy as np

from ..core.arrays import Images, IntArray
from .shards import Shards

if TYPE_CHECKING:  # stages that only move images need no torch, which takes two seconds to import
    from torch import Tensor


@dataclass(frozen=True)
class Overlay:
    """Images and labels that stand in for those of a base.

    Attributes:
        index: rows of the base, int64 [k], sorted.
        images: their images, uint8 [k, height, width, channels].
        labels: their labels, int64 [k].
    """

    index: IntArray
    images: Images | Shards
    labels: IntArray


@dataclass(frozen=True)
class ImageSet:
    """n images of one size.

    Attributes:
        base: images, uint8 [n, height, width, channels], in memory or on disk.
        labels: labels after the overlay, int64 [n]; -1 where the data set has none.
        classes: class names.
        digest: SHA-256 of the artefact it was read from; "" for a set made in memory.
        overlay: images in place of rows of `base`. For reading alone: methods use `gather`.
    """

    base: Images | Shards | Joined
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

    def gather(self, index: IntArray) -> Images:
        """The images at `index` (any order), uint8 [len(index), height, width, channels], a fresh array."""
        # Indexing with an array copies, so the rows below are written to a copy and never to the base.
        images = self.base[index]
        if self.overlay is not None and len(self.overlay.index):
            # Where each sample would stand in the sorted overlay, and whether it does stand there.
            place = np.searchsorted(self.overlay.index, index).clip(max=len(self.overlay.index) - 1)
            hit = self.overlay.index[place] == index
            images[hit] = self.overlay.images[place[hit]]
        return images

    def chunks(self, index: IntArray | None = None, *, most_bytes: int = 16 << 20) -> Iterator[IntArray]:
        """`index` (all samples by default) in stretches of at least one image and of at most `most_bytes` otherwise."""
        index = np.arange(len(self)) if index is None else index
        step = max(1, most_bytes // int(np.prod(self.base.shape[1:])))
        for start in range(0, len(index), step):
            yield index[start : start + step]

    def tensor(self, index: IntArray | None = None) -> Tensor:
        """The images at `index` (all by default) as a tensor, uint8 [n, channels, height, width]."""
        import torch

        images = self.gather(np.arange(len(self)) if index is None else index)
        return torch.from_numpy(images).permute(0, 3, 1, 2)

    def subset(self, index: IntArray) -> ImageSet:
        """The samples at `index` as a set of their own, in memory, without a digest: it is no artefact."""
        return ImageSet(self.gather(index), self.labels[index], self.classes)

    def followed_by(self, *others: ImageSet) -> ImageSet:
        """Its samples, then those of other sets of the same classes, without a digest. Images are read from where they are."""
        sets = (self, *others)
        return ImageSet(Joined(sets), np.concatenate([one.labels for one in sets]), self.classes)


class Joined:
    """Images of several sets one after another, uint8 [n, height, width, channels]. Indexing reads them into a fresh array.

    Raises:
        ValueError: images of different sizes.
    """

    def __init__(self, sets: tuple[ImageSet, ...]) -> None:
        if len(shapes := {one.base.shape[1:] for one in sets}) > 1:
            raise ValueError(f"sets of {sorted(shapes)} given, allowed: of one size")
        self.sets, self._ends = sets, np.cumsum([len(one) for one in sets])
        self.shape: tuple[int, ...] = (int(self._ends[-1]), *sets[0].base.shape[1:])

    def __len__(self) -> int:
        return self.shape[0]

    @property
    def nbytes(self) -> int:
        return int(np.prod(self.shape))

    def __getitem__(self, index: IntArray | slice) -> Images:
        rows = np.arange(len(self))[index] if isinstance(index, slice) else index
        images = np.empty((len(rows), *self.shape[1:]), np.uint8)
        # Set by set, so that one on disk is opened once whatever the order of the rows.
        owner = np.searchsorted(self._ends, rows, side="right")
        for number in np.unique(owner):
            one, places = self.sets[number], np.flatnonzero(owner == number)
            images[places] = one.gather(rows[places] - (self._ends[number] - len(one)))
        return images
