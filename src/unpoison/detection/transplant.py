"""Transplant: whether a part of a group's images, put onto images of other classes, takes the group's class along.

A group that stands apart in its class (`separation`) may be poison or an honest kind of image, and no distance tells them apart for
sure. What makes a backdoor is that its trigger decides whatever else is in the image. SentiNet (Chou, Tramèr and Pellegrino, IEEE
SPW 2020) puts what a class activation map finds in an image onto others and counts how many it misleads. This project's own: the
parts are fixed, the whole of the image at half strength among them, as a trigger may be a patch, a pattern or a hue; and what
counts is how much more often a part of the group misleads than the same of the rest of the class.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Annotated

import numpy as np
import torch
from annotated_types import Ge, Le
from numpy.typing import NDArray
from torch import Tensor, nn

from ..compute.device import autocast, pick_device, to_float
from ..compute.finite import check_finite
from ..compute.inference import batch_size
from ..core.arrays import IntArray
from ..core.hyperparameters import Count, NonNegative
from ..core.progress import progress
from ..core.seeding import numpy_rng
from ..data.imageset import ImageSet
from ..data.scores import Scores
from .detector import Detector, Suspect
from .passes import frozen_for
from .separation import ASSUMPTION, groups_of

PARTS = {
    "whole": (0.0, 1.0, 0.0, 1.0),
    "top left": (0.0, 0.5, 0.0, 0.5),
    "top right": (0.0, 0.5, 0.5, 1.0),
    "bottom left": (0.5, 1.0, 0.0, 0.5),
    "bottom right": (0.5, 1.0, 0.5, 1.0),
    "middle": (0.25, 0.75, 0.25, 0.75),
    "top": (0.0, 0.5, 0.0, 1.0),
    "bottom": (0.5, 1.0, 0.0, 1.0),
    "left": (0.0, 1.0, 0.0, 0.5),
    "right": (0.0, 1.0, 0.5, 1.0),
}
"""Parts that are put onto other images, as shares of rows and columns; the whole at half strength."""
QUARTERS = ("top left", "top right", "bottom left", "bottom right", "middle")
CHOICES = {**{part: (part,) for part in PARTS}, "any quarter": QUARTERS}
"""What a group may carry its class in: a part, or of each image the quarter that brings most, as a trigger may lie anywhere."""
CHOOSING = 40
"""Samples of the group, and of the rest, by which its part is chosen, at most."""
PASS = 512
"""Mixed images of 32 px per forward pass."""
Share = Annotated[float, Ge(-1), Le(1)]
Real = NDArray[np.float64]


@torch.inference_mode()
def score(
    suspect: Suspect,
    *,
    seed: int = 0,
    threshold: Share = 0.5,
    apart: NonNegative = 3.5,
    others: Count = 8,
    components: Count = 10,
    least: Count = 6,
) -> Scores:
    """How many of some images of other classes take a sample's class along with a part of it, less those that the rest brings.

    Args:
        seed: seed of the other images, and of the groups.
        threshold: how much more than the rest, as a share of the other images, a flagged group brings at least.
        apart: separation that a flagged group has at least.
        others: images of other classes that a sample's part is put onto.
        components: as for `separation`.
        least: as for `separation`.

    The group of a class and its separation are those of `separation`. What it carries its class in, one part or of each image the
    quarter that brings most, is chosen by how much more it brings than the rest; of what it brings onto other images than those,
    the lower 95 % bound counts. Samples score by that choice from -1 to 1, the rest of the class about 0. Where a class is too
    small for a group, samples score by the whole at half strength, less the class's mean. A single class has no other images, and
    its samples score 0.
    """
    data, device = suspect.data, pick_device()
    network, grid = frozen_for(suspect.model, data, device), _grids(data.image_size, device)
    values, flagged, passes = np.zeros(len(data)), np.zeros(len(data), bool), 0
    groups = groups_of(suspect, seed=seed, components=components, least=least, what="transplant")
    for found in progress(groups, what="transplant", unit="class", total=len(np.unique(data.labels))):
        group, rest = found.members[found.belonging], found.members[~found.belonging]
        foreign = np.flatnonzero(data.labels != found.label)
        if not len(foreign):
            continue
        rng = numpy_rng(seed, "transplant", found.label)
        if min(len(group), len(rest)) < 2:
            onto = np.sort(rng.permutation(foreign)[:others])
            shares = _brought(network, data, found.members, onto, grid["whole"], found.label, device)
            values[found.members] = shares - shares.mean()
            passes += others * len(found.members)
            continue
        # One draw chooses what the group carries its class in, another measures it.
        first, second = (np.sort(rng.permutation(foreign)[:others]) for _ in range(2))
        few = [np.sort(rng.permutation(samples)[:CHOOSING]) for samples in (group, rest)]
        by_part = {
            part: [_brought(network, data, samples, first, grid[part], found.label, device) for samples in few]
            for part in PARTS
        }
        best = max(CHOICES, key=lambda choice: _more(*_most([by_part[part] for part in CHOICES[choice]])))
        brought = _most(
            [
                [_brought(network, data, samples, second, grid[part], found.label, device) for samples in (group, rest)]
                for part in CHOICES[best]
            ]
        )
        values[group], values[rest] = (shares - brought[1].mean() for shares in brought)
        flagged[group] = found.apart >= apart and at_least(*brought) >= threshold
        passes += others * (len(PARTS) * sum(map(len, few)) + len(CHOICES[best]) * len(found.members))
    check_finite("transplant", values, "predictions")
    rule = (
        f"the groups that stand at least {apart:g} standard deviations apart from the rest of their class and bring it to at least "
        f"{threshold:.0%} more of the images that a part of them is put onto"
    )
    return Scores(
        values.astype(np.float32),
        forward_passes=-(-passes // max(1, len(data))),
        assumption=ASSUMPTION,
        flagged=flagged,
        rule=rule,
    )


def at_least(group: Real, rest: Real) -> float:
    """One-sided 95 % lower bound of the difference of two means, by their own variances (Welch, "The generalization of
    'Student's' problem", Biometrika 1947; of the normal distribution)."""
    variance = sum(float(shares.var(ddof=1)) / len(shares) for shares in (group, rest))
    return _more(group, rest) - 1.645 * float(np.sqrt(variance))


def _most(parts: Sequence[Sequence[Real]]) -> tuple[Real, Real]:
    """What each sample of group and rest brings by the part that brings most."""
    group, rest = (np.max(shares, axis=0) for shares in zip(*parts, strict=True))
    return group, rest


def _more(group: Real, rest: Real) -> float:
    return float(group.mean() - rest.mean())


def _grids(size: tuple[int, int], device: torch.device) -> dict[str, Tensor]:
    """How much of the sample each pixel of a mixture has, by part, float32 [h, w]."""
    height, width = size
    grids = {}
    for name, (top, bottom, left, right) in PARTS.items():
        grids[name] = torch.zeros(height, width, device=device)
        rows, columns = (
            slice(round(a * side), round(b * side)) for a, b, side in ((top, bottom, height), (left, right, width))
        )
        grids[name][rows, columns] = 0.5 if name == "whole" else 1.0
    return grids


def _brought(
    network: nn.Module,
    data: ImageSet,
    samples: IntArray,
    onto: IntArray,
    grid: Tensor,
    label: int,
    device: torch.device,
) -> Real:
    """The share of the images `onto` that get `label` with a part of each sample, float64 [n]."""
    others = to_float(data.tensor(onto), device) * (1 - grid)
    shares, step = [], batch_size(data.image_size, max(1, PASS // len(onto)))
    for start in range(0, len(samples), step):
        images = to_float(data.tensor(samples[start : start + step]), device)
        mixed = ((images * grid)[:, None] + others[None]).flatten(0, 1)
        with autocast(device):
            predicted = network(mixed.contiguous(memory_format=torch.channels_last)).float().argmax(1)
        shares.append((predicted == label).view(-1, len(onto)).double().mean(1).cpu().numpy())
    found: Real = np.concatenate(shares)
    return found


DETECTOR = Detector(score=score)
