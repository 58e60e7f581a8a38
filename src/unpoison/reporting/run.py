"""What a report shows: the artefacts of one run, as many as there are."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pandas as pd

from ..core.arrays import Mask
from ..core.hyperparameters import Count
from ..data.imageset import ImageSet
from ..data.scores import Scores
from ..poisoning.triggered import Triggered
from ..poisoning.truth import Truth


@dataclass(frozen=True, kw_only=True)
class ReportSettings:
    """What a user may choose.

    Attributes:
        note: a line at the top.
        samples: images in the contact sheets.
        suspects: most suspicious samples shown per detector.
    """

    note: str = ""
    samples: Count = 8
    suspects: Count = 24


@dataclass(frozen=True, kw_only=True)
class Run:
    """Everything the report shows. What a run does not have is None or empty, and has no section.

    Attributes:
        settings: what the user chose.
        data: the training set as received.
        about: the base data set's manifest.
        sources: the training samples' names.
        truth: None for data of unknown origin.
        triggered: triggered test images by trigger.
        model: the backdoored model's description (`model.json`).
        sampler: the settings of the variations.
        variations: the variations of the training set.
        metrics: what `evaluate` found; None where it graded another run, or none.
        roc: `fpr` and a column per detector.
        scores: by detector.
        curves: training curves by model: epoch, loss, accuracy.
        losses: float32 [epochs, n], every training sample's loss in every epoch.
    """

    settings: ReportSettings
    data: ImageSet
    about: Mapping[str, Any]
    sources: list[str]
    truth: Truth | None = None
    triggered: Mapping[str, Triggered] = field(default_factory=dict)
    model: Mapping[str, Any] | None = None
    sampler: Mapping[str, Any] | None = None
    variations: ImageSet | None = None
    metrics: Mapping[str, Any] | None = None
    roc: pd.DataFrame | None = None
    scores: Mapping[str, Scores] = field(default_factory=dict)
    curves: Mapping[str, pd.DataFrame] = field(default_factory=dict)
    losses: Any = None

    @property
    def poisoned(self) -> Mask | None:
        """Which samples are poisoned, where that is known and there are any."""
        return self.truth.mask if self.truth is not None and self.truth.mask.any() else None
