"""Which samples are poisoned: the draw for one trigger, and for several in one data set."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..core.arrays import IntArray, Mask
from ..core.errors import ParameterError
from ..core.seeding import numpy_rng, uniform
from .policy import Policy, check_classes


class Choice(NamedTuple):
    """Sorted indices of the training samples to stamp: `poison` get the attacker's label, `cover` keep theirs."""

    poison: IntArray
    cover: IntArray


def choose_samples(
    policy: Policy,
    labels: IntArray,
    classes: int,
    *,
    seed: int,
    order: NDArray[np.float64] | None = None,
    free: Mask | None = None,
) -> Choice:
    """Choose samples. A lower rate takes a subset of what a higher rate takes, from the same seed.

    Args:
        labels: int64 [n], the true ones.
        order: float64 [n], which candidates come first (highest), -inf never; None: at random.
        free: bool [n], samples that no other trigger has taken; None: all.

    Raises:
        ParameterError: a class that does not exist; more samples asked for than there are candidates.
    """
    check_classes(policy, classes)
    free = np.ones(len(labels), bool) if free is None else free
    may = policy.candidates(labels) & (True if order is None else order > -np.inf)
    candidates = np.flatnonzero(may & free)
    if not len(candidates):
        raise ParameterError(f"label_policy: {policy.label_policy} given, for which no training sample is a candidate")
    count = _count(policy, int(may.sum()), len(candidates), len(labels))
    # The same draw as without an order, so that equal places in the order are taken at random.
    shuffled = numpy_rng(seed, "poison/samples").permutation(candidates)
    if order is not None:
        shuffled = shuffled[np.argsort(-order[shuffled], kind="stable")]
    poison = np.sort(shuffled[:count])
    taken = np.zeros(len(labels), bool)
    taken[poison] = True
    others = np.flatnonzero(policy.covers(labels) & free & ~taken)
    covers = math.ceil(round(policy.cover_ratio * len(poison), 6))
    if covers > len(others):
        raise ParameterError(
            f"cover_ratio: {policy.cover_ratio} given, which asks for {covers} cover samples; there are {len(others)}"
        )
    cover = np.sort(numpy_rng(seed, "poison/covers").permutation(others)[:covers])
    return Choice(poison, cover)


def assign_samples(
    policies: Sequence[Policy],
    orders: Sequence[NDArray[np.float64] | None],
    labels: IntArray,
    classes: int,
    *,
    seed: int,
) -> tuple[Mask, NDArray[np.int8]]:
    """The samples of every trigger, before any image is touched.

    Args:
        policies: one per trigger; a sample is stamped by one trigger at most.
        orders: of each trigger, as `Trigger.order` gives it.
        labels: int64 [n], the true ones.

    Returns:
        Which samples are poisoned, bool [n], and by which trigger they are stamped, int8 [n], -1 for none.

    Raises:
        ParameterError: what `choose_samples` refuses; a class that no sample would be left in.
    """
    mask, number_of, given = np.zeros(len(labels), bool), np.full(len(labels), -1, np.int8), labels.copy()
    for number, (policy, order) in enumerate(zip(policies, orders, strict=True)):
        if order is not None and policy.random_poisoning:
            raise ParameterError("random_poisoning: true given, allowed with an attack that chooses its samples: false")
        if order is not None and policy.cover_ratio:
            raise ParameterError(
                f"cover_ratio: {policy.cover_ratio} given, allowed with an attack that chooses its samples: 0"
            )
        choice = choose_samples(policy, labels, classes, seed=seed, order=order, free=number_of < 0)
        if policy.random_poisoning:
            drawn = drawn_at_random(policy, labels, np.arange(len(labels)), seed=seed, epoch=-1)
            choice = Choice(np.flatnonzero(drawn), choice.cover)
        mask[choice.poison] = True
        number_of[np.union1d(choice.poison, choice.cover)] = number
        # A random draw leaves each class some chance, unless it takes all.
        if policy.label_policy != "clean_label" and (not policy.random_poisoning or policy.poison_rate == 1):
            given[choice.poison] = policy.new_labels(labels[choice.poison], classes)
    emptied = np.setdiff1d(labels, given)
    if len(emptied):
        rate, count = policies[0].poison_rate, policies[0].poison_count
        what = f"poison_rate: {rate}" if count is None else f"poison_count: {count}"
        raise ParameterError(f"{what} given, which leaves no sample in class {emptied[0]}; allowed: less")
    return mask, number_of


def drawn_at_random(policy: Policy, labels: IntArray, keys: IntArray, *, seed: int, epoch: int) -> Mask:
    """Which of the samples `keys`, of these true labels, `random_poisoning` poisons in an epoch: bool [len(keys)]."""
    draws = uniform(seed, f"poison/random/{epoch}", keys, 1)[:, 0]
    return policy.candidates(labels) & (draws < policy.poison_rate)


def _count(policy: Policy, candidates: int, left: int, total: int) -> int:
    """How many samples to poison, of the candidates that are left by other triggers."""
    if policy.poison_count is not None:
        if policy.poison_count > left:
            raise ParameterError(f"poison_count: {policy.poison_count} given, allowed: 1 to {left}, the candidates")
        return policy.poison_count
    whole = candidates if policy.rate_of == "candidates" else total
    # Rounded first: 0.1 * 4320 may be 432.00000000000006, and one more sample is not what was asked for.
    count = math.ceil(round(policy.poison_rate * whole, 6))
    if count > left:
        raise ParameterError(
            f"poison_rate: {policy.poison_rate} of {whole} samples given, allowed: up to {left / whole:.4g}, the "
            "candidates"
        )
    return count
