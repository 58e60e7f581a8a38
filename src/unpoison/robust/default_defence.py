"""The project's own answer to "what should I run": pieces of it, put together once, without knowledge of the attack.

1. A victim is trained on the set as received and the trusted images; the detector `ensemble` says by it which samples are suspects.
2. The same again on what is left, without augmentation: poison that is rare now is found by what it was too frequent for.
3. A new network is trained on the rest, which trusted images refill where a class is nearly gone. A fifth of them is held out.
4. A check: tuned for a moment on a few of the suspects whose labels it contradicts, does it give the others theirs again?
5. It is tuned on the trusted images where that costs little accuracy on the fifth, or some and a backdoor woke in the check.

Its pieces and settings were chosen on digits and Fashion-MNIST (docs/robust.md).
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from copy import deepcopy
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..compute.checkpoints import Checkpoints
from ..compute.inference import features_of
from ..core.arrays import Mask
from ..core.errors import ParameterError, UserError
from ..core.hyperparameters import Count
from ..core.seeding import numpy_rng
from ..data.imageset import ImageSet
from ..detection import ensemble
from ..detection.detector import Suspect
from ..detection.ensemble import FalseAlarms
from ..models.classifier import Classifier
from ..purification import fst
from ..training.loop import History, fit
from ..training.recipe import Recipe
from .robust import Keep, Robust, keep_nothing

TUNING: dict[str, Any] = {"batch_size": 32, "alpha": 0.2}
"""Of Feature Shift Tuning."""
RETUNING = Recipe(epochs=5, batch_size=128, lr=0.01, weight_decay=0.0, schedule="constant")
"""Of the check, as in the published Retuning Attack (Min et al., NeurIPS 2024), which knows what is poisoned."""
DROP = 0.02
"""Most accuracy that tuning may cost."""
DROP_AWAKE = 0.05
"""The same where a backdoor woke in the check."""
AWAKE = 0.1
"""Share of the suspects from which on a backdoor is said to have woken."""


def train(
    make_model: Callable[[], Classifier],
    data: ImageSet,
    reserve: ImageSet,
    recipe: Recipe,
    keep: Keep = keep_nothing,
    *,
    seed: int = 0,
    false_alarms: FalseAlarms = 0.05,
    checked: Count = 5,
) -> tuple[Classifier, History]:
    """Detect twice, filter, retrain, check, tune, check again. All images are held in memory.

    What was found is in the history: `suspects` (share of the samples), `tuned` (1 or 0), `contradicted` (suspects whose label the
    model does not give) and, of these without the few, `woken` (share that it gives their label once it was tuned on the few).

    Args:
        make_model: maker of the network, freshly initialised.
        data: the training set as received.
        reserve: trusted, labelled images.
        recipe: recipe of all three trainings.
        keep: where the phases have their checkpoints.
        seed: seed for the order of the images and their augmentation.
        false_alarms: share of the trusted images that the ensemble would flag, each time.
        checked: suspects that the check tunes on.

    Raises:
        ParameterError: too few trusted images for the share of false alarms; divergence.
        UserError: all samples are suspects, or its own tuning diverges.
    """
    if len(reserve) < (least := ensemble.needs_trusted(false_alarms=false_alarms)):
        raise ParameterError(
            f"false_alarms: {false_alarms} given with {len(reserve)} trusted images, for which {least} are the least (data.reserve)"
        )
    kept = np.arange(len(data))
    for name, one in {"first": recipe, "second": replace(recipe, augment=())}.items():
        victim, what = make_model(), f"default_defence/{name}"
        rest = data.subset(kept)
        # A victim that never saw the trusted images would find them odder than all that it was trained on.
        fit(victim, rest.followed_by(reserve), one, seed=seed, what=what, checkpoints=keep(what))
        find = partial(_suspects, victim, rest, reserve, false_alarms, seed)
        kept = kept[~_remembered(keep(f"{what}/suspects"), len(rest), find)]
        if not len(kept):
            raise UserError(
                f"default_defence: all of the {len(data)} samples are suspects beside the trusted images; allowed: trusted images "
                "of the kind that the data are of (data.reserve_from)"
            )
    model, what = make_model(), "default_defence/training"
    held_out, used = _fifth(reserve, seed)
    rest = _refilled(_without(data.subset(kept), held_out), used)
    history = fit(model, rest, recipe, seed=seed, what=what, checkpoints=keep(what))
    suspects = data.subset(np.setdiff1d(np.arange(len(data)), kept))
    with _constants("check"):
        check = _check(model, reserve, suspects, checked, seed)
    with _constants("tuning"):
        tried = fst.purify(model, used, seed=seed, **TUNING)
    before, after = ((_labels(one, held_out) == held_out.labels).mean() for one in (model, tried))
    tuned = after >= before - (DROP_AWAKE if check.get("woken", 0.0) >= AWAKE else DROP)
    if tuned:
        with _constants("check"):
            model, check = tried, _check(tried, reserve, suspects, checked, seed)
    return model, replace(history, found={"suspects": len(suspects) / len(data), "tuned": float(tuned), **check})


def _suspects(victim: Classifier, data: ImageSet, reserve: ImageSet, false_alarms: float, seed: int) -> Mask:
    """Mask of the samples [n] that the ensemble flags by a victim."""
    features, of_reserve = (features_of(victim, one, what="default_defence") for one in (data, reserve))
    suspect = Suspect(model=victim, data=data, features=features, reserve=reserve, reserve_features=of_reserve)
    flagged = ensemble.score(suspect, seed=seed, false_alarms=false_alarms).flagged
    assert flagged is not None
    return flagged


def _remembered(checkpoints: Checkpoints | None, count: int, find: Callable[[], Mask]) -> Mask:
    """A mask of so many samples, found once: detection takes as long as a training, and a killed one need not detect again."""
    mask = torch.zeros(count, dtype=torch.bool)
    if checkpoints is None:
        return find()
    if not checkpoints.load({"mask": mask}):
        mask.copy_(torch.from_numpy(find()))
        checkpoints.save({"mask": mask}, [{"epoch": 1}])
    return mask.numpy()


@contextmanager
def _constants(what: str) -> Iterator[None]:
    """For trainings by constants of this file: an error about a key of theirs is not about one of the user's."""
    try:
        yield
    except ParameterError as error:
        raise UserError(f"default_defence: in its {what}: {error}") from None


def _without(data: ImageSet, held_out: ImageSet) -> ImageSet:
    """The set without the images that are held out: trusted ones may be copies of training images."""
    out = {image.tobytes() for image in held_out.gather(np.arange(len(held_out)))}
    there = [image.tobytes() in out for image in data.gather(np.arange(len(data)))]
    return data.subset(np.flatnonzero(~np.array(there)))


def _refilled(data: ImageSet, trusted: ImageSet) -> ImageSet:
    """The set with the trusted images of those classes of which it has fewer: all samples of a class may be poisoned.

    Not of all classes: tuning on images that the network was trained on changes little.
    """
    there, given = (np.bincount(one.labels, minlength=len(data.classes)) for one in (data, trusted))
    return data.followed_by(trusted.subset(np.flatnonzero((there < given)[trusted.labels])))


def _fifth(reserve: ImageSet, seed: int) -> tuple[ImageSet, ImageSet]:
    """A fifth of the trusted images, and the others."""
    order = numpy_rng(seed, "default_defence/held_out").permutation(len(reserve))
    held_out, used = np.split(order, [len(reserve) // 5])
    return reserve.subset(np.sort(held_out)), reserve.subset(np.sort(used))


def _check(model: Classifier, reserve: ImageSet, suspects: ImageSet, count: int, seed: int) -> dict[str, float]:
    """How many suspects have a label that the model contradicts, and what share of them get it after a moment of tuning."""
    contradicted = (
        suspects.subset(np.flatnonzero(_labels(model, suspects) != suspects.labels)) if len(suspects) else suspects
    )
    found = {"contradicted": float(len(contradicted))}
    if len(contradicted) < 2 * count:
        return found
    order = numpy_rng(seed, "default_defence/check").permutation(len(contradicted))
    few, others = contradicted.subset(np.sort(order[:count])), contradicted.subset(np.sort(order[count:]))
    again = deepcopy(model)
    fit(again, reserve.followed_by(few), RETUNING, seed=seed, what="default_defence/check")
    return found | {"woken": float((_labels(again, others) == others.labels).mean())}


def _labels(model: Classifier, data: ImageSet) -> NDArray[np.int64]:
    labels: NDArray[np.int64] = features_of(model, data, what="default_defence").logits[np.arange(len(data))].argmax(1)
    return labels


def _trusted(*, false_alarms: float = 0.05, **own: Any) -> int:
    return ensemble.needs_trusted(false_alarms=false_alarms)


ROBUST = Robust(train=train, trusted=_trusted)
