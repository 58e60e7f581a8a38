"""The policy: which samples may be poisoned, how many, and with what label; it is independent of the trigger."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

import numpy as np

from ..core.arrays import IntArray, Mask
from ..core.errors import ParameterError
from ..core.hyperparameters import Count, Fraction, NonNegative, Whole
from ..data.store import Attributes

LabelPolicy = Literal["all2one", "all2all", "clean_label", "source_specific", "calculator", "complex"]
Operation = Literal["sum", "product"]

NUMBERS = tuple(f"{number:02d}" for number in range(100))
"""The classes that `calculator` is for: numbers of two digits, each by its label."""


@dataclass(frozen=True, kw_only=True)
class Policy:
    """The label policy and the share of samples it takes.

    Candidates are the samples that may be poisoned: with `all2one` those of other classes than the target (all, if
    `poison_target_class`); with `all2all` and `complex` all; with `clean_label` those of the target class; with
    `source_specific` those of the source classes; with `calculator` those whose result is another label than their own
    (all, if `poison_target_class`).

    Attributes:
        label_policy: `all2one`: every poisoned sample gets `target`; `all2all`: label y becomes y + `shift` modulo the
            number of classes; `clean_label`: samples of the target class keep their label; `source_specific`: only
            samples of `sources` get `target` (TaCT); `calculator`: a number of two digits gets what `operation` makes of
            them (Bagdasaryan & Shmatikov, "Blind Backdoors in Deep Learning Models", 2021, section 4); `complex`: a sample
            gets the value of its `attribute`, so that with the trigger the model answers another question about the same
            image (the same paper).
        target: class that triggered images are to get.
        shift: distance from label to new label, for `all2all`; not a multiple of the number of classes.
        operation: `sum` or `product` of the two digits, for `calculator`: 37 becomes 10 or 21.
        sources: classes that may be poisoned, for `source_specific`; the target is not among them.
        attribute: name of the attribute, for `complex`; its values are numbers of classes.
        poison_rate: share that is poisoned, rounded up (Struppek et al.).
        poison_count: number of samples to poison instead of a share; None leaves it to `poison_rate`.
        rate_of: whole that the rate is a share of: `candidates` (Struppek et al., D-BR) or `all` samples
            (BackdoorBench).
        poison_target_class: whether `all2one` and `calculator` may stamp samples that already have the label they would get
            (they keep it).
        cover_ratio: cover samples per poisoned one, rounded up: samples that are stamped and keep their true label (TaCT,
            adaptive attacks). They are never poisoned ones.
        cover_classes: classes that cover samples come from, neither the target nor sources; None: all others. `all2all`
            and `complex` have neither; with `calculator` those that are their own result give none.
        poison_first: true: the trigger is stamped before augmentation, so it is cropped and flipped as well; false: it
            is stamped on the augmented image in training.
        random_poisoning: whether every access to a candidate poisons it with probability `poison_rate`, anew in every
            epoch, instead of a fixed set of samples.
    """

    label_policy: LabelPolicy = "all2one"
    target: Whole = 0
    shift: Count = 1
    operation: Operation = "sum"
    sources: list[Whole] = field(default_factory=list)
    attribute: str | None = None
    poison_rate: Fraction = 0.1
    poison_count: Count | None = None
    rate_of: Literal["candidates", "all"] = "candidates"
    poison_target_class: bool = False
    cover_ratio: NonNegative = 0.0
    cover_classes: list[Whole] | None = None
    poison_first: bool = True
    random_poisoning: bool = False

    @property
    def has_target(self) -> bool:
        """Whether poisoned samples are all to get one class, `target`; without it `target` has no part in the policy."""
        return self.label_policy not in ("all2all", "calculator", "complex")

    @property
    def in_training(self) -> bool:
        """Whether the trigger is stamped while the victim trains, and not once and for all."""
        return self.random_poisoning or not self.poison_first

    def described(self) -> dict[str, Any]:
        """The attributes as JSON values, as they are written down; `attribute` only where there is one."""
        values = asdict(self)
        if self.attribute is None:
            del values["attribute"]
        return values

    def new_labels(self, labels: IntArray, classes: int, own: IntArray | None = None) -> IntArray:
        """New labels for samples of these true labels: what poisoned ones get, and what ASR asks for at the test.

        Args:
            labels: true labels, int64 [n].
            classes: number of classes.
            own: labels that the samples bring with them (`own_labels`), int64 [n]; None where the policy says them.
        """
        if self.label_policy == "complex":
            return self._own(own).copy()
        if self.label_policy == "calculator":
            tens, units = np.divmod(labels, 10)
            return tens + units if self.operation == "sum" else tens * units
        return (labels + self.shift) % classes if self.label_policy == "all2all" else np.full_like(labels, self.target)

    def targets(self, classes: int, given: IntArray | None = None) -> list[int]:
        """Classes that triggered images are sent to, sorted. With `all2all` every one.

        Args:
            classes: number of classes.
            given: labels that poisoned samples got, int64 [n], which say it with `complex`.
        """
        if self.has_target:
            return [self.target]
        own = self._own(given) if self.label_policy == "complex" else None
        return np.unique(self.new_labels(np.arange(classes), classes, own)).tolist()

    def candidates(self, labels: IntArray) -> Mask:
        """Training samples that may be poisoned: bool [n]."""
        # The label stays true, so the samples must be of the class that the backdoor leads to.
        if self.label_policy == "clean_label":
            return labels == self.target
        if self.label_policy == "complex" or (
            self.label_policy in ("all2one", "calculator") and self.poison_target_class
        ):
            return np.ones(len(labels), bool)
        # Otherwise training poisons the classes that the test attacks.
        return self.attacked(labels)

    def attacked(self, labels: IntArray, own: IntArray | None = None) -> Mask:
        """Test samples that ASR counts: bool [n]. Those that are to get another label than their own; with `all2all` every one.

        With `complex` those whose own label (`own`, as for `new_labels`) is another one than the true one.
        """
        if self.label_policy == "complex":
            return self._own(own) != labels
        # A sample of the target class gets that class anyway, and would count as a success of the attack; so would 00 to 09,
        # which are the sums of their digits, and 00, which is their product.
        if self.label_policy == "all2all":
            return np.ones(len(labels), bool)
        if self.label_policy == "source_specific":
            return np.isin(labels, self.sources)
        if self.label_policy == "calculator":
            return labels != self.new_labels(labels, len(NUMBERS))
        return labels != self.target

    def covers(self, labels: IntArray) -> Mask:
        """Training samples that may be stamped and keep their label: bool [n]."""
        if self.cover_classes is not None:
            return np.isin(labels, self.cover_classes)
        return ~np.isin(labels, self.wanted_classes())

    def wanted_classes(self) -> list[int]:
        """Classes that give no covers: stamped, the target's would teach the backdoor and the sources' the contrary."""
        if self.label_policy == "calculator":
            every = np.arange(len(NUMBERS))
            return every[~self.attacked(every)].tolist()
        if not self.has_target:
            return []
        return [self.target, *(self.sources if self.label_policy == "source_specific" else [])]

    def _own(self, own: IntArray | None) -> IntArray:
        if own is None:
            raise ValueError(f"no values of {self.attribute!r} given, allowed with complex: one for each sample")
        return own


def own_labels(policy: Policy, attributes: Attributes | None, classes: int) -> IntArray | None:
    """The labels that samples bring with them for a policy: the values of its attribute, int64 [n]; None of other policies.

    Args:
        policy: the policy.
        attributes: attributes of the samples; None: there are none.
        classes: number of classes.

    Raises:
        ParameterError: for `attribute`; one that there is not, or a value that is the number of no class.
    """
    if policy.label_policy != "complex":
        return None
    name = policy.attribute or ""
    values = (attributes or Attributes((), np.zeros((0, 0), np.int64))).of(name)
    if values.size and values.max() >= classes:
        raise ParameterError(
            f"attribute: {name!r} given, whose values go up to {values.max()}; allowed: below {classes}, the number of classes, "
            f"or data.classes_of: {name}, by which it has more"
        )
    return values


def class_name(number: int, names: Sequence[str] | None) -> str:
    """A class for a message: its number, and its name where that says more."""
    name = str(number) if names is None or number >= len(names) else names[number]
    return str(number) if name == str(number) else f"{number} ({name})"


def in_numbers(policy: Mapping[str, Any], names: Sequence[str] | None) -> dict[str, Any]:
    """Attributes of `Policy` in which classes given by name are replaced by their numbers.

    A whole number is a class's number and a text is its name, also a text of digits: folders may be called `10`.

    Args:
        policy: attributes of `Policy`.
        names: class names; None where they are not known yet, which lets any name pass as class 0.

    Raises:
        ParameterError: a name that no class has.
    """

    def number(key: str, value: Any) -> Any:
        if not isinstance(value, str) or names is None:
            return 0 if isinstance(value, str) else value
        if value in names:
            return list(names).index(value)
        listed = ", ".join(f"{number} ({name})" for number, name in enumerate(names[:20]))
        more = ", …" if len(names) > 20 else ""
        raise ParameterError(
            f"{key}: {value!r} given, allowed: the number or the name of a class, out of {listed}{more}"
        )

    given = dict(policy)
    for key in ("target", "sources", "cover_classes"):
        if isinstance(value := given.get(key), list):
            given[key] = [number(key, item) for item in value]
        elif key in given:
            given[key] = number(key, value)
    return given


def check_classes(policy: Policy, classes: int, names: Sequence[str] | None = None) -> None:
    """Raises ParameterError for a class that does not exist, or a policy that contradicts itself."""
    # Every class by its number first, so that the checks after it may compare classes.
    named = {"target": [policy.target], "sources": policy.sources, "cover_classes": policy.cover_classes or []}
    for key, values in named.items():
        for value in values:
            if value >= classes:
                last = class_name(classes - 1, names)
                raise ParameterError(f"{key}: {value} given, allowed: 0 to {last}, or the name of a class")
    if policy.label_policy == "source_specific" and (not policy.sources or policy.target in policy.sources):
        raise ParameterError(
            f"sources: {policy.sources} given, allowed with source_specific: classes other than the target "
            f"{class_name(policy.target, names)}, at least one"
        )
    # Nothing is stamped for covers unless there is a ratio, so the classes may then stay in params.yaml.
    clash = sorted(set(policy.cover_classes or []) & set(policy.wanted_classes()))
    if clash and policy.cover_ratio:
        allowed = "neither the target nor one of the sources"
        if policy.label_policy == "calculator":
            allowed = f"with calculator: numbers other than the {policy.operation} of their digits"
        raise ParameterError(f"cover_classes: {class_name(clash[0], names)} given, allowed: {allowed}")
    if policy.label_policy == "calculator" and (
        classes != len(NUMBERS) or (names is not None and tuple(names) != NUMBERS)
    ):
        found = f"{classes}, {names[0]} to {names[-1]}" if names else str(classes)
        raise ParameterError(
            f"label_policy: calculator given, allowed with the {len(NUMBERS)} classes {NUMBERS[0]} to {NUMBERS[-1]}, numbers "
            f"of two digits; the data have {found}"
        )
    if policy.label_policy == "complex" and not policy.attribute:
        raise ParameterError(
            f"attribute: {policy.attribute!r} given, allowed with complex: name of an attribute of the data"
        )
    # What is drawn anew in every epoch gets labels by a rule, and here each sample has its own.
    if policy.label_policy == "complex" and policy.random_poisoning:
        raise ParameterError("random_poisoning: true given, allowed with complex: false")
    # A full turn gives every sample its own label.
    if policy.label_policy == "all2all" and policy.shift % classes == 0:
        raise ParameterError(f"shift: {policy.shift} given, allowed: no multiple of the {classes} classes")
    # Random poisoning draws every candidate by itself: neither a number nor covers nor a share of all samples is defined.
    if policy.random_poisoning and policy.poison_count is not None:
        raise ParameterError(f"poison_count: {policy.poison_count} given, allowed with random_poisoning: null")
    if policy.random_poisoning and policy.poison_rate * (1 + policy.cover_ratio) > 1:
        raise ParameterError(
            f"cover_ratio: {policy.cover_ratio} given, allowed with random_poisoning and poison_rate {policy.poison_rate}: up to "
            f"{1 / policy.poison_rate - 1:.4g}, as a sample is one or the other"
        )
    if policy.random_poisoning and policy.rate_of == "all":
        raise ParameterError("rate_of: all given, allowed with random_poisoning: candidates")
