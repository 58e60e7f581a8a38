"""The type of a figure, and the scene that it is drawn from. Figures grade nothing: the truth names and colours, no more."""

from __future__ import annotations

import csv
import inspect
import io
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from ..compute.inference import passes
from ..core.arrays import Images, IntArray, Mask
from ..core.seeding import numpy_rng
from ..data.drawings import Drawing
from ..data.features import Rows
from ..data.imageset import ImageSet
from ..models.classifier import Classifier
from ..poisoning.triggered import Triggered


@dataclass(frozen=True)
class Pairs:
    """Test images without and with a trigger, of all triggers together.

    Attributes:
        clean: uint8 [n, h, w, c].
        triggered: the same images with the trigger, uint8 [n, h, w, c].
        true: their true labels, int64 [n].
        wanted: the labels that the attacker wants, int64 [n].
        index: their numbers in the test split, int64 [n].
        classes: class names.
    """

    clean: Images
    triggered: Images
    true: IntArray
    wanted: IntArray
    index: IntArray
    classes: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.true)

    def sets(self) -> tuple[ImageSet, ImageSet]:
        """The clean images with their true labels, and the triggered ones with those that the attacker wants."""
        return ImageSet(self.clean, self.true, self.classes), ImageSet(self.triggered, self.wanted, self.classes)


@dataclass(frozen=True, kw_only=True)
class Scene:
    """What figures are drawn from.

    Attributes:
        models: models by their names on the page, the backdoored one first.
        data: training set as received.
        poisoned: mask of the poisoned samples among them, bool [n]; None where it is not known, or there are none.
        test: clean test split.
        triggered: triggered test images by trigger; none where no trigger is known.
    """

    models: Mapping[str, Classifier]
    data: ImageSet
    poisoned: Mask | None
    test: ImageSet
    triggered: Mapping[str, Triggered]

    @property
    def has_trigger(self) -> bool:
        """Whether some test image carries a trigger."""
        return any(map(len, self.triggered.values()))

    def pairs(self, most: int, seed: int, purpose: str) -> Pairs:
        """At most `most` pairs, drawn from those of all triggers; none where no trigger is known."""
        counts = [len(one) for one in self.triggered.values()]
        drawn = np.sort(numpy_rng(seed, purpose).permutation(sum(counts))[:most])
        parts = []
        for one, end in zip(self.triggered.values(), np.cumsum(counts), strict=True):
            rows = drawn[(drawn >= end - len(one)) & (drawn < end)] - (end - len(one))
            keys = one.overlay.index[rows]
            images = one.overlay.images[rows]
            parts.append((one.test.gather(keys), images, one.true[rows], one.overlay.labels[rows], keys))
        if not parts:
            none = np.zeros(0, np.int64)
            parts.append((self.test.gather(none), self.test.gather(none), none, none, none))
        clean, triggered, true, wanted, index = (np.concatenate(part) for part in zip(*parts, strict=True))
        return Pairs(clean, triggered, true, wanted, index, self.test.classes)

    def sample(self, most: int, seed: int, purpose: str) -> ImageSet:
        """At most `most` clean test images, drawn."""
        return self.test.subset(np.sort(numpy_rng(seed, purpose).permutation(len(self.test))[:most]))

    def triggered_sets(self) -> Iterator[tuple[ImageSet, IntArray]]:
        """All triggered images with the labels that the attacker wants, in stretches, and their true labels."""
        for one in self.triggered.values():
            seen = 0
            for _, images, received in one.chunks():
                yield received, one.true[seen : seen + len(images)]
                seen += len(images)


@dataclass(frozen=True, kw_only=True)
class Figure:
    """A kind of picture of what a backdoor does in a model.

    Attributes:
        draw: `draw(scene, *, seed, …) -> Drawing`; its keyword-only arguments but the seed, which a figure without chance does not
            take, are its own parameters.
        needs: what it cannot do without: a known trigger on test images, a test split, or neither.
    """

    draw: Callable[..., Drawing]
    needs: Literal["trigger", "test", "nothing"] = "test"

    @property
    def parameters(self) -> Callable[..., Drawing]:
        """The function whose keyword-only arguments are the figure's own parameters."""
        return self.draw

    @property
    def seeded(self) -> bool:
        """Whether it draws anything at random, and takes a seed."""
        return "seed" in inspect.signature(self.draw).parameters

    def missing(self, scene: Scene) -> str | None:
        """What the scene lacks that the figure needs, in words; None where it lacks nothing."""
        if self.needs != "nothing" and not len(scene.test):
            return "it needs a test split, and there is none"
        if self.needs == "trigger" and not scene.triggered:
            return "it needs a trigger, and none is known"
        if self.needs == "trigger" and not scene.has_trigger:
            return "it needs triggered images, and no test image carries the trigger"
        return None


def outputs(model: Classifier, data: ImageSet, what: str) -> tuple[Rows, Rows]:
    """Logits float32 [n, classes] and penultimate features float32 [n, d] of a set that fits in memory."""
    logits, features = zip(*passes(model, data, what=what), strict=True)
    return np.concatenate(logits), np.concatenate(features)


def csv_of(columns: Mapping[str, Any]) -> str:
    """A table as CSV: text in quotes, numbers to six digits without; an empty text for a number that is not there."""
    text = io.StringIO()
    # Not by pandas, which makes text of a float to round it.
    writer = csv.writer(text, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows(
        zip(*([_cell(value) for value in np.asarray(one).tolist()] for one in columns.values()), strict=True)
    )
    return text.getvalue()


def _cell(value: Any) -> Any:
    if not isinstance(value, float):
        return value
    return float(f"{value:.6g}") if math.isfinite(value) else ""


def file_name(model: str, kind: str = "") -> str:
    """The name of a picture's file: `purified_fst-pca` of `purified: fst`."""
    return f"{model.replace(': ', '_')}{f'-{kind}' if kind else ''}"
