"""Which samples are poisoned, and what label they get."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError
from ..hyperparameters import Count, Fraction, Whole
from ..seeding import numpy_rng

IntArray = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Policy:
    """The label policy and the share of samples it takes.

    Attributes:
        label_policy: `all2one` (every poisoned sample gets `target`) or `all2all` (label y becomes y + 1 mod classes).
        target: the class of `all2one`.
        poison_rate: share of the candidates that is poisoned, rounded up (Struppek et al.). Candidates are all samples,
            without those of the target class unless `poison_target_class`.
        poison_count: this many instead of a share; null leaves it to `poison_rate`.
        poison_target_class: whether samples that already have the target label may be stamped (their label stays).
    """

    label_policy: Literal["all2one", "all2all"] = "all2one"
    target: Whole = 0
    poison_rate: Fraction = 0.1
    poison_count: Count | None = None
    poison_target_class: bool = False

    def new_labels(self, labels: IntArray, classes: int) -> IntArray:
        """The labels that poisoned samples of these true labels get."""
        return (labels + 1) % classes if self.label_policy == "all2all" else np.full_like(labels, self.target)

    def attacked(self, labels: IntArray) -> NDArray[np.bool_]:
        """Which test samples ASR counts: for `all2one` those of another class, for `all2all` every one."""
        return np.ones(len(labels), bool) if self.label_policy == "all2all" else labels != self.target


def choose_samples(policy: Policy, labels: IntArray, classes: int, *, seed: int) -> IntArray:
    """The indices to poison, sorted. A lower rate takes a subset of what a higher rate takes, from the same seed.

    Raises:
        UserError: target outside the classes; more samples asked for than there are candidates.
    """
    if policy.target >= classes:
        raise UserError(f"attack.target: {policy.target} given, allowed: 0 to {classes - 1}")
    excluded = policy.label_policy == "all2one" and not policy.poison_target_class
    candidates = np.flatnonzero(labels != policy.target) if excluded else np.arange(len(labels))
    if policy.poison_count is not None:
        if policy.poison_count > len(candidates):
            raise UserError(
                f"attack.poison_count: {policy.poison_count} given, allowed: 1 to {len(candidates)}, the candidates"
            )
        count = policy.poison_count
    else:
        # Rounded first: 0.1 * 4320 may be 432.00000000000006, and one more sample is not what was asked for.
        count = math.ceil(round(policy.poison_rate * len(candidates), 6))
    order = numpy_rng(seed, "poison/samples").permutation(candidates)
    return np.sort(order[:count])
