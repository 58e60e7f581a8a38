"""Grading of stress tests: what a purified model does once an attacker with poisoned images has been at it."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping

import numpy as np

from ..compute.inference import logits_of
from ..core.seeding import numpy_rng
from ..data.imageset import ImageSet
from ..data.stress import Line
from ..models.classifier import Classifier
from ..poisoning.triggered import Triggered
from ..poisoning.truth import Truth
from .grading import model_metrics
from .metrics import accuracy

MOST = 10_000  # poisoned images in memory, of which the attacks need a few hundred


def poisoned_images(data: ImageSet, truth: Truth, *, seed: int) -> tuple[ImageSet, ImageSet]:
    """An attacker's poisoned training images, at most `MOST` of them, with his labels, and with their true ones.

    The second are those whose label he changed, or all where he changed none.
    """
    changed = truth.mask & (truth.labels != data.labels)
    wanted = [np.flatnonzero(mask) for mask in (truth.mask, changed if changed.any() else truth.mask)]
    given, true = (
        rows if len(rows) <= MOST else np.sort(numpy_rng(seed, "stress/poisoned").choice(rows, MOST, replace=False))
        for rows in wanted
    )
    return data.subset(given), ImageSet(data.gather(true), truth.labels[true], data.classes)


def retuned_metrics(
    retuned: Classifier,
    test: ImageSet,
    truth: Truth,
    triggered: Mapping[str, Triggered],
    *,
    control: Classifier | None = None,
) -> dict[str, float]:
    """`retuned_acc`, and where there are triggered test images `retuned_asr` and `retuned_ra`.

    With a control, a clean model that was retuned in the same way, its ASR is `retuned_asr_clean`.
    """
    graded = model_metrics(retuned, test, truth, triggered)
    figures = {f"retuned_{key}": graded[key] for key in ("acc", "asr", "ra") if key in graded}
    if control is not None and "retuned_asr" in figures:
        figures["retuned_asr_clean"] = model_metrics(control, test, truth, triggered)["asr"]
    return figures


def line_metrics(
    models: Iterable[tuple[float, Classifier]], test: ImageSet, truth: Truth | None, triggered: Mapping[str, Triggered]
) -> Line:
    """ACC and ASR of the networks on a line, by their places on it; no ASR where no test image carries a trigger."""
    graded = [(t, model_metrics(model, test, truth, triggered)) for t, model in models]
    return Line(
        t=[t for t, _ in graded],
        acc=[values["acc"] for _, values in graded],
        asr=[values["asr"] for _, values in graded if "asr" in values],
    )


def reactivated_metrics(
    change: Callable[[ImageSet], ImageSet],
    purified: Classifier,
    clean: Classifier,
    triggered: Mapping[str, Triggered],
) -> dict[str, float]:
    """Shares of changed test images that get the attacker's label, of those that ASR counts.

    `reactivated_asr`: of the images with the trigger, by the purified model; `reactivated_asr_clean`: by the clean model.
    `reactivated_untriggered` and `reactivated_untriggered_clean`: the same of the images without the trigger. Nothing where
    no test image carries one.

    Args:
        change: images to changed images, with their labels.
        purified: model that was attacked.
        clean: model that never saw poison.
        triggered: triggered test images by the trigger's name.
    """
    hits, count = np.zeros((2, 2)), 0
    for images in triggered.values():
        for without, _, stamped in images.chunks():
            kinds = (stamped, ImageSet(without, stamped.labels, stamped.classes))
            for row, kind in enumerate(map(change, kinds)):
                hits[row] += [accuracy(logits_of(model, kind), kind.labels) * len(kind) for model in (purified, clean)]
            count += len(without)
    if not count:
        return {}
    names = ("asr", "asr_clean", "untriggered", "untriggered_clean")
    return {f"reactivated_{name}": value for name, value in zip(names, (hits / count).ravel().tolist(), strict=True)}
