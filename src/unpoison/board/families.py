"""The families of methods on the board: their figures in a run's metrics, and which settings of a run ask for them."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from typing import Any

from ..detection import DETECTORS, INPUT_DETECTORS
from ..inspection import INSPECTORS
from ..purification import PURIFIERS
from ..robust import ROBUST
from .board import Solved

FUSION = "fusion"
"""What several detectors say together: it is not asked for, and is there where several have scores."""


@dataclass(frozen=True)
class Family:
    """A family of methods.

    Attributes:
        title: heading of its maps.
        place: where its figures lie in the metrics, in front of a method's name.
        methods: names of its methods, in the order of the page.
        shown: the figure that a cell shows.
        shown_in_words: the same for readers.
        low_is_good: whether a small one is the better.
        figures: figures that an opened cell has, as far as they were measured.
        lists: keys of parameters that list its methods.
        blocks: keys of parameters that have a key for each of its methods.
        cost: the figure that says what a method costs, and its heading; "": none is counted.
        elsewhere: methods with a stage of their own: where their figures lie, and the key that switches them on.
    """

    title: str
    place: str
    methods: tuple[str, ...]
    shown: str
    shown_in_words: str
    low_is_good: bool
    figures: tuple[str, ...]
    lists: tuple[str, ...]
    blocks: tuple[str, ...] = ()
    cost: tuple[str, str] = ("", "")
    elsewhere: Mapping[str, tuple[str, str]] = field(default_factory=dict)

    def place_of(self, method: str) -> str:
        """Where a method's figures lie in the metrics."""
        return self.elsewhere[method][0] if method in self.elsewhere else f"{self.place}.{method}"

    def asked(self, overrides: Mapping[str, Any]) -> set[str]:
        """Names of its methods that a run with these overrides makes."""
        listed = {name for key in self.lists for name in overrides.get(key) or ()}
        by = {
            key.removeprefix(f"{block}.") for block in self.blocks for key in overrides if key.startswith(f"{block}.")
        }
        apart = {name for name, (_, key) in self.elsewhere.items() if overrides.get(key)}
        found = (listed | by | apart) & {*self.methods}
        return found | ({FUSION} if FUSION in self.methods and len(found) > 1 else set())

    def solved(self, figures: Mapping[str, float], victim: Mapping[str, float], rule: Solved) -> bool | None:
        """Whether figures solve a cell; None where some that it takes were not measured."""
        if self.place in ("purified", "robust"):
            if not {"acc", "asr", "ra"} <= figures.keys() or "acc" not in victim:
                return None
            # To six places, as metrics are written: 0.87 - 0.85 is the 0.02 that is allowed.
            kept = round(victim["acc"] - figures["acc"], 6) <= rule.acc_drop
            right = round(figures["acc"] - figures["ra"], 6) <= rule.ra_drop
            return figures["asr"] <= rule.asr and kept and right
        if self.place == "models":
            if not {"hit", "false_alarms"} <= figures.keys():
                return None
            return figures["hit"] == 1 and figures["false_alarms"] == 0
        return figures["tpr_at_1fpr"] >= rule.tpr if "tpr_at_1fpr" in figures else None


_SCORES = (
    "auroc",
    "ap",
    "tpr_at_1fpr",
    "tpr_at_5fpr",
    "flagged_tpr",
    "flagged_fpr",
    "scored",
    "scored_poisoned",
    "passes_per_sample",
)
_GRADES = ("acc", "asr", "ra", "der", "retuned_asr", "passes")


def _of_images(detectors: Mapping[str, Any]) -> Iterable[str]:
    return (name for name, detector in detectors.items() if detector.images)


FAMILIES = (
    Family(
        "Detectors of poisoned training samples",
        "detection",
        (*_of_images(DETECTORS), FUSION),
        "auroc",
        "AUROC",
        False,
        _SCORES,
        ("detect.methods",),
        cost=("passes_per_sample", "passes per sample"),
    ),
    Family(
        "Detectors at test time: triggered among clean images",
        "inputs",
        tuple(_of_images(INPUT_DETECTORS)),
        "auroc",
        "AUROC",
        False,
        _SCORES,
        ("detect.inputs",),
        cost=("passes_per_sample", "passes per sample"),
    ),
    Family(
        "Inspectors of the model",
        "models",
        tuple(INSPECTORS),
        "hit",
        "1 where the target is flagged, 0 where not",
        False,
        ("hit", "false_alarms", "anomaly", "passes"),
        ("detect.models",),
        cost=("passes", "images passed"),
    ),
    Family(
        "Purifiers",
        "purified",
        tuple(PURIFIERS),
        "asr",
        "ASR",
        True,
        _GRADES,
        ("purify.methods",),
        ("purify.by",),
        ("passes", "images passed"),
    ),
    Family(
        "Robust training",
        "robust",
        tuple(ROBUST),
        "asr",
        "ASR",
        True,
        _GRADES,
        ("robust.methods",),
        ("robust.by",),
        elsewhere={"distillation": ("student", "variations.enabled")},
    ),
)
