"""The contents of a report: the artefacts of one run, as many as there are."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Literal

import numpy as np
import pandas as pd

from ..core.arrays import IntArray, Mask
from ..core.hyperparameters import Count
from ..data.bias import AttributeMask
from ..data.drawings import Drawing
from ..data.imageset import ImageSet
from ..data.problems import Problems
from ..data.scores import Scores
from ..data.store import Received
from ..data.verdicts import Verdict
from ..poisoning.policy import class_name
from ..poisoning.triggered import Triggered
from ..poisoning.truth import Truth
from .metrics import best_first
from .suspicion import GROUPS, Round, Suspicion, suspicion


@dataclass(frozen=True, kw_only=True)
class ReportSettings:
    """Settings of the report.

    Attributes:
        note: line at the top.
        samples: number of samples in a contact sheet.
        suspects: number of most suspicious samples shown per detector.
        level: level of suspicion from which on samples stand in `removed.txt` and not in `kept.txt`.
    """

    note: str = ""
    samples: Count = 8
    suspects: Count = 24
    level: Literal["low", "medium", "high"] = "high"


@dataclass(frozen=True)
class Examined:
    """What `examine` found, with the images that its rows count.

    Attributes:
        problems: problems of the training samples as received and of other splits.
        data: all of them, in the order of the rows.
        sources: their names.
        splits: number of images in each split, in that order.
    """

    problems: Problems
    data: ImageSet
    sources: list[str]
    splits: Mapping[str, int]


@dataclass(frozen=True, kw_only=True)
class Run:
    """Artefacts of one run. What it does not have is None or empty, and gets no section.

    Attributes:
        settings: settings of the report.
        data: training set as received.
        about: manifest of the base data set.
        sources: names of the training samples.
        truth: ground truth; None for data of unknown origin.
        triggered: triggered test images by trigger.
        model: description of the backdoored model (`model.json`).
        defended: descriptions (`model.json`) of the models that defences gave, by their names on the page.
        teacher: folder of the student's teacher; "" where it is the backdoored model.
        sampler: settings of the variations.
        variations: variations of the training set.
        metrics: metrics that `evaluate` wrote; None where they are of another run, or absent.
        roc: ROC curves, `fpr` and a column per detector.
        intervals: ends of the bootstrap intervals, two rows, and a column for each: `DETECTOR.FIGURE`, and of detectors of test
            inputs `inputs.DETECTOR.FIGURE`.
        line: ACC and ASR of networks between purified models and the backdoored one: `t`, `METHOD.acc`, `METHOD.asr`.
        rounds: ACC and ASR of the victim after rounds of a federation: `round`, `acc`, `asr`.
        scores: scores by detector.
        levels_by: detectors that make the levels, as another run may have left scores of more; None: all.
        not_applicable: detectors that had no set to score, as the victim receives a model.
        verdicts: verdicts on the backdoored model by inspector.
        curves: training curves by model, with epoch, loss and accuracy.
        examined: problems of the data that are no backdoor.
        losses: loss of every training sample in every epoch, float32 [epochs, n].
        calibration: what the detectors say of sets with canaries, a round each.
        attributes: masks of attributes.
        drawings: figures of the models by name.
        chance: share of the most frequent class among the test images.
        rates: audits of models that are known to be clean or backdoored, a row each; None where there are none.
        vocabulary: words by their ids where the samples are texts; none of images.
    """

    settings: ReportSettings
    data: ImageSet
    about: Mapping[str, Any]
    sources: list[str]
    truth: Truth | None = None
    triggered: Mapping[str, Triggered] = field(default_factory=dict)
    model: Mapping[str, Any] | None = None
    defended: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    teacher: str = ""
    sampler: Mapping[str, Any] | None = None
    variations: ImageSet | None = None
    metrics: Mapping[str, Any] | None = None
    roc: pd.DataFrame | None = None
    intervals: pd.DataFrame | None = None
    line: pd.DataFrame | None = None
    rounds: pd.DataFrame | None = None
    scores: Mapping[str, Scores] = field(default_factory=dict)
    levels_by: Sequence[str] | None = None
    not_applicable: Sequence[str] = ()
    verdicts: Mapping[str, Verdict] = field(default_factory=dict)
    curves: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    examined: Examined | None = None
    losses: Any = None
    calibration: Sequence[Round] = ()
    attributes: Sequence[AttributeMask] = ()
    drawings: Mapping[str, Drawing] = field(default_factory=dict)
    chance: float = 0.0
    rates: pd.DataFrame | None = None
    vocabulary: Sequence[str] = ()

    def class_name(self, label: int) -> str:
        """A class by number and name, `2 (10)`, or by number where that is its name."""
        return class_name(label, self.data.classes)

    def samples(self, scored: Scores) -> IntArray:
        """The samples that a detector scored, int64 [n]."""
        return np.arange(len(self.data)) if scored.index is None else scored.index

    @cached_property
    def suspicion(self) -> Suspicion | None:
        """Levels of suspicion of the training samples, where detectors have scored them."""
        return suspicion(self.grounds, self.data.labels, self.calibration)

    @property
    def grounds(self) -> Mapping[str, Scores]:
        """The scores that the levels are made of."""
        return {name: one for name, one in self.scores.items() if self.levels_by is None or name in self.levels_by}

    @property
    def is_scan(self) -> bool:
        """Whether the page opens with an answer: of data of unknown origin whose groups were looked at, or with canaries."""
        return self.suspicion is not None and (
            bool(self.calibration) or (self.truth is None and GROUPS in self.grounds)
        )

    @property
    def learned(self) -> float | None:
        """Share of the training labels that the backdoored model has learned; None where its training is not on record."""
        curve = self.curves.get("backdoored")
        return float(curve["accuracy"].iloc[-1]) if curve is not None and len(curve) else None

    @property
    def received(self) -> Received:
        """What the victim of the attack gets; of data of unknown origin the set."""
        return "set" if self.truth is None else self.truth.received

    @property
    def graded(self) -> Mapping[str, Any]:
        """Figures by detector; none where the truth is not known."""
        if self.truth is None or self.metrics is None:
            return {}
        graded: Mapping[str, Any] = self.metrics.get("detection", {})
        return graded

    @property
    def detectors(self) -> list[str]:
        """The detectors whose scores there are, in the order of every section: best first, then those without figures."""
        graded = [name for name in best_first(self.graded) if name in self.scores]
        return graded + [name for name in self.scores if name not in self.graded]

    @property
    def poisoned(self) -> Mask | None:
        """Mask of the poisoned samples, where it is known and there are any."""
        return self.truth.mask if self.truth is not None and self.truth.mask.any() else None
