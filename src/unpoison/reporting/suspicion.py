"""Levels of suspicion: what several detectors say of a training sample, put into four words, without the truth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
from numpy.typing import NDArray

from ..core.arrays import IntArray
from ..data.ranks import order, ranks
from ..data.scores import Scores
from ..poisoning.truth import Truth

LEVELS = ("none", "low", "medium", "high")
"""Levels in rising order, by number."""
LOW, MEDIUM, HIGH = 1, 2, 3
FAR = 5.5
"""Separation from which on a group is of level `high` whatever it brings to other images; those that the detector's own rule flags
below it are `medium`."""
LEARNED = 0.8
"""Share of the training labels below which a model is undertrained, and no level means anything."""
NO_ANSWER = "No answer yet"
"""How the answer of such a scan begins."""
FIRST = 0.01
"""Share of the list that is of level `low` in any set, clean ones too: worth a look, and no sign by itself."""
GROUPS, CARRIED = "separation", "transplant"
"""The detector whose groups are of level `medium` or, far apart, `high`, and the one whose groups are `high`, as a part of their
images takes their class along. Neither needs trusted images, and both have a scale of their own."""


@dataclass(frozen=True)
class Suspicion:
    """Levels of the training samples.

    Attributes:
        level: level of each sample by its number in `LEVELS`, int8 [n]; 0 of those that no detector scored.
        apart: separation of the most separate group of each sample's class, float32 [n]; 0 where it was not measured.
        brought: how many more of the images that a part of its group is put onto take the class than with the rest of it, as a
            share, float32 [n]; 0 but for samples that `transplant` flags.
        place: place of each sample in the list by the mean of its ranks, from 1, int64 [n]; 0 where it was not scored.
        look: which network gave the level, int8 [n]: 0 the one of the set as received, k that of the k-th round of canaries.
    """

    level: NDArray[np.int8]
    apart: NDArray[np.float32]
    brought: NDArray[np.float32]
    place: IntArray
    look: NDArray[np.int8]

    def count(self, level: int) -> int:
        return int((self.level == level).sum())


@dataclass(frozen=True)
class Round:
    """What detectors say of a set with canaries.

    Attributes:
        truth: which samples are canaries, of which kind.
        scores: scores by detector.
    """

    truth: Truth
    scores: Mapping[str, Scores]

    @cached_property
    def kinds(self) -> list[Caught]:
        """What would have been found of each kind of canary."""
        return caught(self)


@dataclass(frozen=True)
class Caught:
    """What the levels would have been for the canaries of one kind in a round.

    Attributes:
        kind: attack that planted them.
        target: class that they were given.
        count: number of them that were scored.
        found: how many of them reach each level or a higher one, int64 [4].
        first: by detector, how many of them are among as many of its first samples.
    """

    kind: str
    target: int
    count: int
    found: IntArray
    first: Mapping[str, int]


def suspicion(scores: Mapping[str, Scores], labels: IntArray, rounds: Sequence[Round] = ()) -> Suspicion | None:
    """Levels of all samples; None without any detector.

    `high` and `medium`: in a group of its class that stands apart (`separation`), for `high` very far, or such that a part of its
    images takes the class along to others (`transplant`); by the network that was trained on the set as received or by one that
    was trained on it with canaries: what one training makes of a trigger another may not. `low`: among the first of the list by the
    mean of the detectors' ranks.

    Args:
        scores: scores of the training set by detector.
        labels: labels as received, int64 [n].
        rounds: sets with canaries, each of the same n samples.
    """
    found = _at_one_look(scores, labels)
    if found is not None:
        for number, planted in enumerate(rounds, 1):
            found = _with_round(found, planted, number)
    return found


def _with_round(found: Suspicion, planted: Round, number: int) -> Suspicion:
    """The levels, raised where the network of a round sees a group of ordinary samples."""
    labels, canary = _labels(planted), planted.truth.part >= 0
    seen = _at_one_look(planted.scores, labels)
    if seen is None:
        return found
    ordinary = np.zeros(len(labels), bool)
    for label in np.unique(labels[seen.level >= MEDIUM]):
        group = (seen.level >= MEDIUM) & (labels == label)
        # Samples that a group of canaries has drawn along are none of its kind, and count as false alarms.
        if 2 * (group & canary).sum() < group.sum():
            ordinary |= group & ~canary
    raised = ordinary & (seen.level > found.level)
    return Suspicion(
        np.where(raised, seen.level, found.level),
        np.where(raised, seen.apart, found.apart),
        np.where(raised, seen.brought, found.brought),
        found.place,
        np.where(raised, number, found.look).astype(np.int8),
    )


def _at_one_look(scores: Mapping[str, Scores], labels: IntArray) -> Suspicion | None:
    """Levels by the scores of one network alone."""
    if not scores:
        return None
    count = len(labels)
    sums, times = np.zeros(count), np.zeros(count, np.int64)
    for one in scores.values():
        samples = np.arange(count) if one.index is None else one.index
        # As shares of the samples that it scored, which may be a part.
        sums[samples] += np.mean(ranks(one.values), axis=0) / len(samples)
        times[samples] += 1
    scored = np.flatnonzero(times)
    listed = order(-sums[scored] / times[scored], scored)
    place, level = np.zeros(count, np.int64), np.zeros(count, np.int8)
    place[listed] = np.arange(1, len(listed) + 1)
    level[listed[: first_of(len(listed))]] = LOW
    apart, brought = np.zeros(count, np.float32), np.zeros(count, np.float32)
    if (groups := scores.get(GROUPS)) is not None and groups.flagged is not None:
        samples = np.arange(count) if groups.index is None else groups.index
        # The largest score of a class is its group's separation.
        for label in np.unique(labels[samples]):
            members = labels[samples] == label
            apart[samples[members]] = groups.values[members].max()
        flagged = samples[groups.flagged]
        level[flagged] = np.where(apart[flagged] >= FAR, HIGH, MEDIUM)
    if (carried := scores.get(CARRIED)) is not None and carried.flagged is not None:
        samples = np.arange(count) if carried.index is None else carried.index
        flagged = samples[carried.flagged]
        level[flagged] = HIGH
        # The scores of the rest of a class are about 0, so that a group's mean is its difference from them.
        for label in np.unique(labels[flagged]):
            of_class = carried.flagged & (labels[samples] == label)
            brought[samples[of_class]] = carried.values[of_class].mean()
    return Suspicion(level, apart, brought, place, np.zeros(count, np.int8))


def first_of(count: int) -> int:
    """How many samples are the first of a list of so many."""
    return max(1, round(FIRST * count))


def reasons(found: Suspicion, scores: Mapping[str, Scores], labels: IntArray, classes: Sequence[str]) -> list[str]:
    """Why each sample has its level, in words; "" for those of none."""
    sizes = np.bincount(labels, minlength=len(classes))
    words = [""] * len(labels)
    firsts = {name: _ranks_of(one, len(labels)) for name, one in scores.items()}
    for label, look in np.unique(np.stack([labels, found.look]), axis=1).T.tolist():
        group = np.flatnonzero((found.level >= MEDIUM) & (labels == label) & (found.look == look))
        for sample in group.tolist():
            words[sample] = (
                f"one of {len(group)} samples of class {classes[label]} that stand at least {at_least(found.apart[sample])} "
                f"standard deviations apart from the other {sizes[label] - len(group)}{' beside canaries' if look else ''}"
                + (f"; a part of them {takes_along(found.brought[group].max())}" if found.brought[group].any() else "")
            )
    for sample in np.flatnonzero(found.level == LOW).tolist():
        best = sorted((rank[sample], name) for name, rank in firsts.items() if rank[sample])[:2]
        words[sample] = f"number {found.place[sample]} of the list: " + ", ".join(
            f"rank {rank:g} by {name}" for rank, name in best
        )
    return words


def at_least(apart: float) -> str:
    """A lower bound with one decimal, rounded down: 4.97 is not 5."""
    return f"{np.floor(apart * 10) / 10:.1f}"


def takes_along(brought: float) -> str:
    """What a part of a group's images does to others, in words."""
    return f"gives their class to {brought:.0%} more of the images that it is put onto"


def _ranks_of(scores: Scores, count: int) -> NDArray[np.float64]:
    """Rank of each sample, from 1, float64 [n]; 0 of those that were not scored."""
    found = np.zeros(count)
    found[np.arange(count) if scores.index is None else scores.index] = np.mean(ranks(scores.values), axis=0)
    return found


def caught(planted: Round) -> list[Caught]:
    """What would have been found of the canaries of a round, by kind."""
    truth, labels = planted.truth, _labels(planted)
    found = _at_one_look(planted.scores, labels)
    if found is None:
        return []
    by_kind = []
    for number, part in enumerate(truth.parts):
        own = (truth.part == number) & (found.place > 0)
        reached = np.array([int((found.level[own] >= level).sum()) for level in range(len(LEVELS))])
        first = {}
        for name, one in planted.scores.items():
            samples = np.arange(len(labels)) if one.index is None else one.index
            # Canaries of other kinds are no false alarms: they are left out of the list.
            others = (truth.part[samples] >= 0) & (truth.part[samples] != number)
            listed = order(one.values[~others], samples[~others])
            first[name] = int(own[listed[: int(own.sum())]].sum())
        by_kind.append(Caught(part.attack, part.policy.target, int(own.sum()), reached, first))
    return by_kind


def other_alarms(planted: Round, scan: Suspicion) -> tuple[IntArray, int]:
    """Samples without a canary that a round's levels name: those of each level or a higher one that `scan` does not name so.

    Returns:
        Their numbers by level, int64 [4], and that of all samples without a canary.
    """
    found = _at_one_look(planted.scores, _labels(planted))
    ordinary = planted.truth.part < 0
    if found is None:
        return np.zeros(len(LEVELS), np.int64), int(ordinary.sum())
    named = [ordinary & (found.level >= level) for level in range(len(LEVELS))]
    alone = [int((mask & (scan.level < level)).sum()) for level, mask in enumerate(named)]
    return np.array(alone), int(ordinary.sum())


def _labels(planted: Round) -> IntArray:
    """The labels of the set with canaries."""
    truth = planted.truth
    classes = 1 + max(int(truth.labels.max()), *(part.policy.target for part in truth.parts))
    return truth.labels_received(classes)
