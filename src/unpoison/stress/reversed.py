"""The Retuning Attack without an attacker: the trigger is the one that an inspector reversed from the model.

A reversed trigger takes images to its class by construction, with or without a backdoor. What tells a backdoor is what a
purified model does with it: whether the flips are gone, and whether a few of them bring all of them back. The trigger of
another class, which nobody planted, is put through the same and is the control.

Retuning is that of Min et al., "Uncovering, Explaining, and Mitigating the Superficial Safety of Backdoor Defense" (NeurIPS
2024); triggers are those of Wang et al., "Neural Cleanse" (S&P 2019), section IV-A. The two together are this project's.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from ..compute.inference import logits_of
from ..core.arrays import Images
from ..core.errors import ParameterError
from ..data.imageset import ImageSet
from ..data.verdicts import Verdict, suspected_and_control
from ..models.classifier import Classifier
from .retuning import retune


def reversed_figures(
    suspect: Classifier,
    purified: Classifier,
    reserve: ImageSet,
    test: ImageSet,
    verdict: Verdict,
    *,
    seed: int = 0,
    **settings: Any,
) -> dict[str, float]:
    """Shares of held-out images that a reversed trigger takes to its class, by the name of the figure.

    `reversed`, `reversed_purified` and `reversed_retuned` are of the most suspicious class: by the model as it came, by the
    purified one, and by that once it was tuned on a few stamped trusted images. `control`, `control_purified` and
    `control_retuned` are the same of the class that `suspected_and_control` names.

    Args:
        suspect: the model as it came.
        purified: what a purifier made of it. Both are left as they were.
        reserve: trusted, labelled images; those that are stamped for tuning are among them.
        test: images that no other step has seen; those of the trigger's own class are left out.
        verdict: verdict with patches.
        seed: seed of the stamped images that are taken, and of tuning.
        settings: of `retune`: `poisoned`, `epochs`, `batch_size`, `lr`, `augment`.

    Raises:
        ParameterError: a verdict without patches; fewer images of other classes than are to be stamped.
    """
    classes = suspected_and_control(verdict)
    if classes is None:
        raise ParameterError("methods: a verdict without reversed triggers given, allowed: one with masks and patterns")
    figures = {}
    for name, target in zip(("reversed", "control"), classes, strict=True):
        held_out = with_trigger(test, verdict, target)
        if not len(held_out):
            raise ParameterError(f"methods: no held-out image of another class than {test.classes[target]!r} found")
        retuned = retune(purified, reserve, with_trigger(reserve, verdict, target), seed=seed, **settings)
        for suffix, model in (("", suspect), ("_purified", purified), ("_retuned", retuned)):
            figures[f"{name}{suffix}"] = flips(model, held_out)
    return figures


def with_trigger(data: ImageSet, verdict: Verdict, target: int) -> ImageSet:
    """The images of other classes with the reversed trigger of class `target`, which is their label: (1 - m) x + m p."""
    rows = np.flatnonzero(data.labels != target)
    mask = verdict.aux["masks"][target].astype(np.float32)[..., None]
    pattern = verdict.aux["patterns"][target].transpose(1, 2, 0).astype(np.float32)
    stamped: Images = np.rint(data.gather(rows) * (1 - mask) + pattern * mask).astype(np.uint8)
    return ImageSet(stamped, np.full(len(rows), target, np.int64), data.classes)


def flips(model: Classifier, stamped: ImageSet) -> float:
    """The share of stamped images that get the trigger's class."""
    return float((logits_of(model, stamped).argmax(1).numpy() == stamped.labels).mean())
