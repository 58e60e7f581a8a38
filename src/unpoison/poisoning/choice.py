"""The choice of samples to poison: for one trigger, and for several in one data set."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..core.arrays import IntArray, Mask
from ..core.errors import ParameterError
from ..core.seeding import numpy_rng, uniform
from .policy import Policy, check_classes, class_name


class Choice(NamedTuple):
    """Training samples to stamp, as sorted indices.

    Attributes:
        poison: samples that get the attacker's label.
        cover: samples that keep their own.
    """

    poison: IntArray
    cover: IntArray


class Marks(NamedTuple):
    """Samples of all triggers together.

    Attributes:
        mask: the poisoned samples, bool [n].
        part: the number of the trigger that stamps a sample, int8 [n], -1 for none.
        given: labels after the attack, int64 [n], where an attack chooses them; None: the policies say them.
    """

    mask: Mask
    part: NDArray[np.int8]
    given: IntArray | None


def choose_samples(
    policy: Policy,
    labels: IntArray,
    classes: int,
    *,
    seed: int,
    order: NDArray[np.float64] | None = None,
    free: Mask | None = None,
    names: Sequence[str] | None = None,
) -> Choice:
    """The samples of one trigger. From the same seed a lower rate takes a subset of those of a higher rate.

    Args:
        policy: candidates and number.
        labels: true labels, int64 [n].
        classes: number of classes.
        seed: seed of the attacker.
        order: rank of each candidate, highest first and -inf never, float64 [n]; None: at random.
        free: samples that no other trigger has taken, bool [n]; None: all.
        names: class names, for messages.

    Raises:
        ParameterError: a class that does not exist; more samples asked for than there are candidates.
    """
    check_classes(policy, classes, names)
    free = np.ones(len(labels), bool) if free is None else free
    # A rate is a share of all candidates, also of those that another trigger has taken, so that the number of one trigger's
    # samples does not depend on the others.
    eligible = policy.candidates(labels) & (True if order is None else order > -np.inf)
    candidates = np.flatnonzero(eligible & free)
    if not len(candidates):
        target = int((labels == policy.target).sum())
        found = f"{target} are of the target class {class_name(policy.target, names)}, {len(labels) - target} of others"
        if policy.label_policy == "calculator":
            found = f"{len(labels)} are the {policy.operation} of their digits or taken"
        raise ParameterError(
            f"label_policy: {policy.label_policy} given, for which no training sample is a candidate: {found}"
        )
    count = _count(policy, int(eligible.sum()), len(candidates), len(labels))
    # The first of one permutation, so that a lower rate's samples are a subset of a higher rate's. An order sorts this
    # permutation, and as the sort is stable, equal ranks stay in random order.
    shuffled = numpy_rng(seed, "poison/samples").permutation(candidates)
    if order is not None:
        shuffled = shuffled[np.argsort(-order[shuffled], kind="stable")]
    poison = np.sort(shuffled[:count])
    taken = np.zeros(len(labels), bool)
    taken[poison] = True
    # Covers are drawn from the rest by a generator of their own, so that a cover ratio moves no poisoned sample.
    rest = np.flatnonzero(policy.covers(labels) & free & ~taken)
    covers = math.ceil(round(policy.cover_ratio * len(poison), 6))
    if covers > len(rest):
        raise ParameterError(
            f"cover_ratio: {policy.cover_ratio} given, which asks for {covers} cover samples; there are {len(rest)}"
        )
    cover = np.sort(numpy_rng(seed, "poison/covers").permutation(rest)[:covers])
    return Choice(poison, cover)


def assign_samples(
    policies: Sequence[Policy],
    orders: Sequence[NDArray[np.float64] | None],
    labels: IntArray,
    classes: int,
    *,
    seed: int,
    names: Sequence[str] | None = None,
    copies: bool = False,
    chosen: Sequence[IntArray | None] | None = None,
) -> Marks:
    """The samples of every trigger, before any image is touched.

    Args:
        policies: one per trigger; a sample is stamped by one trigger at most.
        orders: one per trigger, as `Trigger.order` gives it.
        labels: true labels, int64 [n].
        classes: number of classes.
        seed: seed of the attacker.
        names: class names, for messages.
        copies: whether a stamped copy is trained on beside each sample as it is, so that no class can lose one.
        chosen: one per trigger, as `Trigger.labels` gives it; None: the policies say all labels.

    Raises:
        ParameterError: what `choose_samples` refuses; a class that no sample would be left in.
    """
    mask, number_of, given = np.zeros(len(labels), bool), np.full(len(labels), -1, np.int8), labels.copy()
    chosen = [None] * len(policies) if chosen is None else chosen
    for number, (policy, order, own) in enumerate(zip(policies, orders, chosen, strict=True)):
        # A property that a sample has or lacks is neither drawn anew in every epoch nor stamped on a cover.
        if order is not None and policy.random_poisoning:
            raise ParameterError("random_poisoning: true given, allowed with an attack that chooses its samples: false")
        if order is not None and policy.cover_ratio:
            raise ParameterError(
                f"cover_ratio: {policy.cover_ratio} given, allowed with an attack that chooses its samples: 0"
            )
        choice = choose_samples(policy, labels, classes, seed=seed, order=order, free=number_of < 0, names=names)
        # One draw as an example of an epoch; -1 is the number of none.
        if policy.random_poisoning:
            drawn = chosen_anew(policy, labels, np.arange(len(labels)), seed=seed, epoch=-1)
            choice = Choice(*(np.flatnonzero(mask) for mask in drawn))
        mask[choice.poison] = True
        number_of[np.union1d(choice.poison, choice.cover)] = number
        # Random poisoning empties a class only where it takes every candidate.
        if policy.label_policy != "clean_label" and (not policy.random_poisoning or policy.poison_rate == 1):
            given[choice.poison] = (policy.new_labels(labels, classes) if own is None else own)[choice.poison]
    # A class that has lost all its samples could not be learnt, and ACC would measure that and not the attack.
    emptied = np.setdiff1d(labels, given)
    if len(emptied) and not copies:
        rate, count = policies[0].poison_rate, policies[0].poison_count
        what = f"poison_rate: {rate}" if count is None else f"poison_count: {count}"
        allowed = _most(policies[0], orders[0], chosen[0], labels, classes, seed) if len(policies) == 1 else "less"
        raise ParameterError(
            f"{what} given, which leaves no sample in class {class_name(int(emptied[0]), names)}; allowed: {allowed}"
        )
    return Marks(mask, number_of, given if any(own is not None for own in chosen) else None)


def _most(
    policy: Policy,
    order: NDArray[np.float64] | None,
    own: IntArray | None,
    labels: IntArray,
    classes: int,
    seed: int,
) -> str:
    """The largest rate, or count, of one trigger that leaves a sample in every class, for a message."""
    if policy.random_poisoning:
        return "below 1"

    def chosen(count: int) -> Choice:
        return choose_samples(replace(policy, poison_count=count), labels, classes, seed=seed, order=order)

    # Samples of a lower count are among those of a higher one, so that halving the range finds the last that is allowed.
    new = policy.new_labels(labels, classes) if own is None else own
    least, above = 0, int((policy.candidates(labels) & (True if order is None else order > -np.inf)).sum())
    candidates = above
    while above - least > 1:
        middle = (least + above) // 2
        given = labels.copy()
        poison = chosen(middle).poison
        given[poison] = new[poison]
        least, above = (least, middle) if len(np.setdiff1d(labels, given)) else (middle, above)
    if policy.poison_count is not None:
        return f"up to {least}"
    # Rounded down: rounded up it might take one sample more.
    whole = candidates if policy.rate_of == "candidates" else len(labels)
    return f"up to {math.floor(least / whole * 10_000) / 10_000:g}"


def chosen_anew(policy: Policy, labels: IntArray, keys: IntArray, *, seed: int, epoch: int) -> tuple[Mask, Mask]:
    """The samples that `random_poisoning` poisons in an epoch, and the covers: bool [len(keys)] each, disjoint.

    Args:
        policy: candidates, rate and cover ratio.
        labels: true labels of the samples `keys`.
        keys: indices in the training set.
        seed: seed of the attacker.
        epoch: number of the epoch, part of the draw; -1 for the snapshot that is kept.
    """
    draws = uniform(seed, f"poison/random/{epoch}", keys, 1)[:, 0]
    rate = policy.poison_rate
    # One draw decides both: the covers are those right above the poisoned ones.
    poison = policy.candidates(labels) & (draws < rate)
    cover = policy.covers(labels) & (draws >= rate) & (draws < rate * (1 + policy.cover_ratio))
    return poison, cover


def _count(policy: Policy, candidates: int, left: int, total: int) -> int:
    """Number of samples to poison.

    Args:
        policy: rate or count.
        candidates: number of candidates.
        left: number of candidates that other triggers have left.
        total: number of training samples.
    """
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
