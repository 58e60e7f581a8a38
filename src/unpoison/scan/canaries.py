"""Canaries: known triggers on a few of the user's own images, in a copy of the set, so that a detector's score has a scale.

What a detector finds of them says what it would have found of an attack like these on these very images. A patch, a pattern
over the whole image and a wave are three kinds that detectors see differently.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from ..attacks import badnets, blended, sig
from ..core.arrays import IntArray
from ..core.errors import UserError
from ..core.seeding import numpy_rng
from ..crafting.attack import Attack, intent
from ..crafting.context import Context
from ..crafting.craft import craft
from ..data.imageset import ImageSet
from ..poisoning.poisoned import Poisoned

KINDS: Mapping[str, Attack] = {"badnets": badnets.ATTACK, "blended": blended.ATTACK, "sig": sig.ATTACK}
"""Attacks that canaries are planted by, as published but for the size of the patch. Each goes to a class of its own."""
SHARE, LEAST = 0.01, 12
"""Canaries of a kind: a share of all samples and at least so many, but never more than a third of their class then has."""
FEWEST = 6
"""Canaries of a kind at least, as `separation` looks at no smaller group."""


def plant(data: ImageSet, *, seed: int) -> Poisoned:
    """The set with canaries in the place of some samples of it.

    Args:
        data: training set as received, n samples.
        seed: seed of the choice of samples and classes.

    Raises:
        UserError: classes too small, or fewer than two.
    """
    sizes = np.bincount(data.labels, minlength=len(data.classes))
    wanted = max(LEAST, round(SHARE * len(data)))
    targets = targets_of(sizes, seed=seed)
    intents = []
    for (name, attack), target in zip(KINDS.items(), targets, strict=False):
        # k canaries beside m images are a third of the class where k = m / 2. All of them come from other classes.
        count = min(wanted, int(sizes[target]) // 2, int(len(data) - sizes[target]) // (2 * len(targets)))
        policy = {
            "label_policy": "all2one",
            "target": int(target),
            "poison_count": max(FEWEST, count),
            "rate_of": "all",
        }
        # A patch of a fixed number of pixels would vanish on large images.
        own = {"size": max(3, min(data.image_size) // 8)} if name == "badnets" else {}
        intents.append(intent(name, attack, policy, own))
    return craft("canaries", intents, Context(train=data, seed=seed))


def targets_of(sizes: IntArray, *, seed: int) -> IntArray:
    """A class for each kind, drawn from those that are large enough; where there are only two, the first two kinds have one.

    Raises:
        UserError: classes too small, or fewer than two.
    """
    large = np.flatnonzero(sizes >= 2 * FEWEST)
    if len(large) < 2:
        raise UserError(
            f"detect.canary: no canary can be planted in {int(sizes.sum())} images of {int((sizes > 0).sum())} classes; allowed: "
            f"at least two classes of {2 * FEWEST} images or more, or no canaries (detect.canary: [], CANARY=0)"
        )
    return numpy_rng(seed, "canaries/targets").permutation(large)[: len(KINDS)]


def kinds_of(sizes: IntArray) -> list[str]:
    """The kinds that would be planted, by the sizes of the classes."""
    return list(KINDS)[: len(targets_of(sizes, seed=0))]
