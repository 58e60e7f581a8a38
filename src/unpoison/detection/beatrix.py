"""Beatrix (Ma et al., "The 'Beatrix' Resurrections: Robust Backdoor Detection via Gram Matrices", NDSS 2023).

Which channels fire together is much alike for the clean images of a class. Gram matrices of the last feature map, to several
powers, are compared entry by entry with bounds from trusted images.

Published code of a port, which takes the root of the plain Gram matrix for every power (`raised: false`):
https://github.com/SCLBD/BackdoorBench/blob/f02e353/detection_pretrain/beatrix.py
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..compute.device import autocast, pick_device
from ..compute.finite import check_finite
from ..compute.inference import batches
from ..core.arrays import IntArray
from ..core.errors import ParameterError
from ..core.hyperparameters import Count, Fraction, NonNegative
from ..core.seeding import numpy_rng
from ..data.imageset import ImageSet
from ..data.scores import Scores
from ..models.classifier import Classifier
from .detector import Detector, Suspect

BATCH = 64  # images of 32 px: half a matrix of 512 channels has 131,328 entries
CHANNELS = 512
"""Most channels whose Gram matrix is taken; of more, as many are drawn."""
LEAST = 20
"""Fewest trusted images; and 5 of a label, below which those of all labels bound it."""
FOLDS = 5
EPSILON = 1e-6
"""Added to bounds that are divided by, as in the published code: two channels that are never on together have bounds of 0."""

Entries = NDArray[np.float32]


def score(
    suspect: Suspect,
    *,
    seed: int = 0,
    powers: Count = 8,
    raised: bool = True,
    band: NonNegative = 10.0,
    quantile: Fraction = 0.95,
) -> Scores:
    """How far a sample's Gram matrices leave the bounds of trusted images with its predicted label, over their own quantile.

    Args:
        seed: seed for the folds of the trusted images, and for the channels of a network with more than 512.
        powers: the powers are 1 to this; 8 in the paper.
        raised: whether features are raised to the power before the Gram matrix is taken whose root to that power follows,
            as in the paper (section IV-B); `false` takes roots of the plain matrix, as a port does.
        band: half the width between bounds, in median absolute deviations around the median; 10 in the paper.
        quantile: quantile of the deviations of a label's trusted images that a deviation is divided by, and above which the
            rule flags; 0.95 in the paper. Bounds for a trusted image come from those of the other folds.
    """
    if len(suspect.reserve) < LEAST:
        raise ParameterError(
            f"beatrix: {len(suspect.reserve)} images given, allowed: at least {LEAST} in the trusted reserve"
        )
    maps = _Maps(suspect.model, suspect.reserve, seed)
    fold = numpy_rng(seed, "beatrix/folds").permutation(len(suspect.reserve)) % FOLDS
    given, labels = suspect.reserve_predicted, suspect.predicted
    bounds: dict[int, list[tuple[Entries, Entries]]] = {}
    limits: dict[int, float] = {}
    for label in np.unique(labels):
        members = np.flatnonzero(given == label)
        members = members if len(members) >= FOLDS else np.arange(len(given))
        bounds[label], own = [], np.zeros(len(members))
        for power in range(1, powers + 1):
            entries = grams(maps.trusted[members], power, raised)
            bounds[label].append(bounds_of(entries, band))
            for number in range(FOLDS):
                # Each trusted image against bounds that it had no part in.
                inside = fold[members] == number
                if inside.any() and not inside.all():
                    limits_ = bounds_of(entries[~inside], band)
                    own[inside] += excess(entries[inside], *limits_, maps.epsilon(power, raised))
        limits[label] = max(float(np.quantile(own / powers, quantile)), EPSILON)
    values = np.zeros(len(suspect.data), np.float32)
    for index, images in maps.of(suspect.data):
        for label in np.unique(labels[index]):
            alike = labels[index] == label
            for power, (low, high) in enumerate(bounds[label], 1):
                entries = grams(images[alike], power, raised)
                values[index[alike]] += excess(entries, low, high, maps.epsilon(power, raised))
            values[index[alike]] /= powers * limits[label]
    rule = f"a deviation above the {quantile:.0%} quantile of trusted images with the same predicted label"
    return Scores(values, forward_passes=1, flagged=values > 1, rule=rule)


class _Maps:
    """Last feature maps over the largest trusted value, so that single precision holds their powers.

    Attributes:
        trusted: maps of the trusted images, [r, d, positions].
        scale: the value that maps are divided by.
    """

    def __init__(self, model: Classifier, reserve: ImageSet, seed: int) -> None:
        self.model, self.seed, self.scale = model, seed, 1.0
        maps = torch.cat([maps for _, maps in self.of(reserve)])
        self.scale = max(float(maps.abs().max()), EPSILON)
        self.trusted = maps / self.scale

    def of(self, data: ImageSet) -> Iterator[tuple[IntArray, Tensor]]:
        """Samples and their maps, batch by batch, on the CPU."""
        device = pick_device()
        self.model.to(device=device, memory_format=torch.channels_last).eval()  # type: ignore[call-overload]
        for index, images in batches(data, BATCH, device=device, what="beatrix"):
            with torch.inference_mode(), autocast(device):
                maps = self.model.feature_map(images).flatten(2).float().cpu()
            check_finite("beatrix", maps.numpy(), "feature maps")
            if maps.shape[1] > CHANNELS:
                drawn = numpy_rng(self.seed, "beatrix/channels").permutation(maps.shape[1])[:CHANNELS]
                maps = maps[:, np.sort(drawn)]
            yield index, maps / self.scale

    def epsilon(self, power: int, raised: bool) -> float:
        """`EPSILON` of entries that the scale has made smaller."""
        return float(EPSILON * self.scale ** -(2.0 if raised else 2.0 / power))


def grams(maps: Tensor, power: int, raised: bool) -> Entries:
    """Upper triangles of the Gram matrices to a power: maps [n, d, positions] to float32 [n, d (d + 1) / 2]."""
    values = maps**power if raised else maps
    first, second = torch.triu_indices(maps.shape[1], maps.shape[1])
    products = (values @ values.transpose(1, 2)).flatten(1).index_select(1, first * maps.shape[1] + second)
    entries: Entries = (products.sign() * products.abs() ** (1 / power)).numpy()
    return entries


def bounds_of(entries: Entries, band: float) -> tuple[Entries, Entries]:
    """Lower and upper bound of each column: the median, less and plus `band` median absolute deviations."""
    centre = _median(entries)
    width = band * _median(np.abs(entries - centre))
    return centre - width, centre + width


def _median(entries: Entries) -> Entries:
    """The lower median of each column, [k]. A partition of contiguous columns takes a tenth of a sort."""
    middle = (len(entries) - 1) // 2
    median: Entries = np.partition(np.ascontiguousarray(entries.T), middle, axis=1)[:, middle]
    return median


def excess(entries: Entries, low: Entries, high: Entries, epsilon: float) -> NDArray[np.float64]:
    """Mean relative excess of each row over the bounds, [n] (section IV-C of the paper)."""
    below = np.maximum(low - entries, 0) / (np.abs(low) + epsilon)
    above = np.maximum(entries - high, 0) / (np.abs(high) + epsilon)
    return (below + above).mean(1, dtype=np.float64)


def _needs_trusted(**own: object) -> int:
    return LEAST


DETECTOR = Detector(score=score, needs_trusted=_needs_trusted)
