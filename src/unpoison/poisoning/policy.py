"""Which samples are poisoned, and what label they get: the same for every trigger."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Literal, NamedTuple

import numpy as np
from numpy.typing import NDArray

from ..core.errors import UserError
from ..core.hyperparameters import Count, Fraction, NonNegative, Whole
from ..core.seeding import numpy_rng

IntArray = NDArray[np.int64]
LabelPolicy = Literal["all2one", "all2all", "clean_label", "source_specific"]


@dataclass(frozen=True, kw_only=True)
class Policy:
    """The label policy and the share of samples it takes.

    Candidates are the samples that may be poisoned: of `all2one` those of other classes than the target (all, if
    `poison_target_class`); of `all2all` all; of `clean_label` those of the target class; of `source_specific` those of
    the source classes.

    Attributes:
        label_policy: `all2one`: every poisoned sample gets `target`; `all2all`: label y becomes y + `shift` modulo the
            number of classes; `clean_label`: samples of the target class keep their label; `source_specific`: only
            samples of `sources` get `target` (TaCT).
        target: the target class.
        shift: of `all2all`, not a multiple of the number of classes.
        sources: the classes of `source_specific`, without the target.
        poison_rate: share that is poisoned, rounded up (Struppek et al.).
        poison_count: this many instead of a share; None leaves it to `poison_rate`.
        rate_of: what the rates are shares of: `candidates` (Struppek et al., D-BR) or `all` samples (BackdoorBench).
        poison_target_class: whether `all2one` may stamp samples that already have the target label (they keep it).
        cover_ratio: cover samples per poisoned one, rounded up: samples that are stamped and keep their true label (TaCT,
            adaptive attacks). They are never poisoned ones.
        cover_classes: the classes cover samples come from, neither the target nor sources; None: all others. All2all has
            neither.
        poison_first: whether the trigger is stamped before augmentation (so that it is cropped and flipped as well) or,
            if false, on the augmented image in training.
        random_poisoning: whether every access to a candidate poisons it with probability `poison_rate`, anew in every
            epoch, instead of a fixed set of samples.
    """

    label_policy: LabelPolicy = "all2one"
    target: Whole = 0
    shift: Count = 1
    sources: list[Whole] = field(default_factory=list)
    poison_rate: Fraction = 0.1
    poison_count: Count | None = None
    rate_of: Literal["candidates", "all"] = "candidates"
    poison_target_class: bool = False
    cover_ratio: NonNegative = 0.0
    cover_classes: list[Whole] | None = None
    poison_first: bool = True
    random_poisoning: bool = False

    @property
    def in_training(self) -> bool:
        """Whether the trigger is stamped while the victim trains, and not once and for all."""
        return self.random_poisoning or not self.poison_first

    def new_labels(self, labels: IntArray, classes: int) -> IntArray:
        """The labels that poisoned samples of these true labels get, and the ones that ASR asks for at the test."""
        return (labels + self.shift) % classes if self.label_policy == "all2all" else np.full_like(labels, self.target)

    def candidates(self, labels: IntArray) -> NDArray[np.bool_]:
        """Which training samples may be poisoned: bool [n]."""
        if self.label_policy == "clean_label":
            return labels == self.target
        if self.label_policy == "all2one" and self.poison_target_class:
            return np.ones(len(labels), bool)
        return self.attacked(labels)

    def attacked(self, labels: IntArray) -> NDArray[np.bool_]:
        """Which test samples ASR counts: bool [n]. Those of another class than the target; for `all2all` every one."""
        if self.label_policy == "all2all":
            return np.ones(len(labels), bool)
        if self.label_policy == "source_specific":
            return np.isin(labels, self.sources)
        return labels != self.target

    def covers(self, labels: IntArray) -> NDArray[np.bool_]:
        """Which training samples may be stamped and keep their label: bool [n]."""
        if self.cover_classes is not None:
            return np.isin(labels, self.cover_classes)
        return ~np.isin(labels, self._wanted())

    def _wanted(self) -> list[int]:
        """Classes whose stamped samples would teach the backdoor, or the contrary, whatever label they keep."""
        if self.label_policy == "all2all":
            return []
        return [self.target, *(self.sources if self.label_policy == "source_specific" else [])]


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
    free: NDArray[np.bool_] | None = None,
    where: str = "attack",
) -> Choice:
    """Choose samples. A lower rate takes a subset of what a higher rate takes, from the same seed.

    Args:
        labels: int64 [n], the true ones.
        order: float64 [n], which candidates come first (highest), -inf never; None: at random.
        free: bool [n], samples that no other trigger has taken; None: all.
        where: the section of the parameters, for messages.

    Raises:
        UserError: a class that does not exist; more samples asked for than there are candidates.
    """
    check_classes(policy, classes, where=where)
    free = np.ones(len(labels), bool) if free is None else free
    may = policy.candidates(labels) & (True if order is None else order > -np.inf)
    candidates = np.flatnonzero(may & free)
    if not len(candidates):
        raise UserError(
            f"{where}.label_policy: {policy.label_policy} given, for which no training sample is a candidate"
        )
    count = _count(policy, int(may.sum()), len(candidates), len(labels), where=where)
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
        raise UserError(
            f"{where}.cover_ratio: {policy.cover_ratio} given, which asks for {covers} cover samples; there are {len(others)}"
        )
    cover = np.sort(numpy_rng(seed, "poison/covers").permutation(others)[:covers])
    return Choice(poison, cover)


def check_classes(policy: Policy, classes: int, *, where: str = "attack") -> None:
    """Raises UserError for a class that does not exist, or a policy that contradicts itself."""
    named = {"target": [policy.target], "sources": policy.sources, "cover_classes": policy.cover_classes or []}
    for key, values in named.items():
        for value in values:
            if value >= classes:
                raise UserError(f"{where}.{key}: {value} given, allowed: 0 to {classes - 1}")
    if policy.label_policy == "source_specific" and (not policy.sources or policy.target in policy.sources):
        raise UserError(
            f"{where}.sources: {policy.sources} given, allowed with source_specific: classes other than the target "
            f"{policy.target}, at least one"
        )
    both = sorted(set(policy.cover_classes or []) & set(policy._wanted()))
    if both and policy.cover_ratio:
        raise UserError(f"{where}.cover_classes: {both[0]} given, allowed: neither the target nor one of the sources")
    if policy.label_policy == "all2all" and policy.shift % classes == 0:
        raise UserError(f"{where}.shift: {policy.shift} given, allowed: no multiple of the {classes} classes")
    if policy.random_poisoning and policy.poison_count is not None:
        raise UserError(f"{where}.poison_count: {policy.poison_count} given, allowed with random_poisoning: null")
    if policy.random_poisoning and policy.cover_ratio:
        raise UserError(f"{where}.cover_ratio: {policy.cover_ratio} given, allowed with random_poisoning: 0")
    if policy.random_poisoning and policy.rate_of == "all":
        raise UserError(f"{where}.rate_of: all given, allowed with random_poisoning: candidates")


def _count(policy: Policy, candidates: int, left: int, total: int, *, where: str) -> int:
    """How many samples to poison, of the candidates that are left by other triggers."""
    if policy.poison_count is not None:
        if policy.poison_count > left:
            raise UserError(f"{where}.poison_count: {policy.poison_count} given, allowed: 1 to {left}, the candidates")
        return policy.poison_count
    whole = candidates if policy.rate_of == "candidates" else total
    # Rounded first: 0.1 * 4320 may be 432.00000000000006, and one more sample is not what was asked for.
    count = math.ceil(round(policy.poison_rate * whole, 6))
    if count > left:
        raise UserError(
            f"{where}.poison_rate: {policy.poison_rate} of {whole} samples given, allowed: up to {left / whole:.4g}, the "
            "candidates"
        )
    return count
