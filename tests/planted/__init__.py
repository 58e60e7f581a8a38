"""A small network with a planted backdoor: trained once by `make.py`, committed, and read by every test that needs one.

Its data are made anew, as both the digits and the poisoning of them are determined by their settings.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np

from unpoison import models
from unpoison.attacks import SINGLE
from unpoison.compute.inference import logits_of
from unpoison.crafting.attack import intent
from unpoison.crafting.context import Context
from unpoison.crafting.craft import craft
from unpoison.data.imageset import ImageSet
from unpoison.data.scores import Scored
from unpoison.data.verdicts import Verdict
from unpoison.evaluation.metrics import accuracy
from unpoison.poisoning.poisoned import Poisoned
from unpoison.poisoning.triggered import triggered_of
from unpoison.sources import digits

FOLDER = Path(__file__).resolve().parent / "model"
SIZES = {"train": 1600, "test": 200, "reserve": 300, "public": 100}
# 44 poisoned samples are 22 % of the target class, which is less than the quarter that activation clustering and
# spectral signatures stop at: every detector has what it assumes.
POLICY, TRIGGER = {"poison_rate": 0.03}, {"pattern": "checkerboard", "size": 8}


@dataclass(frozen=True)
class Planted:
    """A poisoned training set, how it was made, clean splits, and the network trained on it."""

    data: ImageSet
    poisoned: Poisoned
    test: ImageSet
    reserve: ImageSet
    model: models.Classifier

    def acc(self, model: models.Classifier) -> float:
        """Accuracy on the clean test images."""
        return accuracy(logits_of(model, self.test), self.test.labels)

    def asr(self, model: models.Classifier) -> float:
        """Share of triggered test images of other classes that are taken for the target."""
        overlay = triggered_of(self.test, self.poisoned.truth.policy, self.poisoned.triggers[0]).overlay
        triggered = ImageSet(overlay.images, overlay.labels, self.test.classes)
        return accuracy(logits_of(model, triggered), triggered.labels)

    def scored(self) -> Scored:
        """What a good detector says of the training set: of the 44 poisoned samples, one in ten ranks among clean ones."""
        poisoned = self.poisoned.truth.mask
        noise = np.random.default_rng(0).normal(size=len(poisoned))
        values = noise + 4.0 * (poisoned & (np.cumsum(poisoned) % 10 != 0))
        return Scored(data=self.data, values=values.astype(np.float32), flagged=values > 3.0)

    def verdict(self) -> Verdict:
        """What a good inspector says of the network: the target, with the trigger as it is; of other classes a full mask."""
        overlay = triggered_of(self.test, self.poisoned.truth.policy, self.poisoned.triggers[0]).overlay
        clean, stamped = self.test.gather(overlay.index), overlay.images[:]
        masks = np.ones((10, *self.test.image_size), np.float16)
        masks[0] = (clean != stamped).any((0, 3))
        patterns = np.zeros((10, 3, *self.test.image_size), np.uint8)
        patterns[0] = stamped[0].transpose(2, 0, 1)
        target = np.arange(10) == 0
        aux = {"masks": masks, "patterns": patterns}
        return Verdict(np.where(target, 5, 0).astype(np.float32), target, "by hand", forward_passes=0, aux=aux)


def make_splits() -> dict[str, ImageSet]:
    """The digits, every split."""
    built = digits.build(SIZES)
    return {name: ImageSet(images, labels, digits.CLASSES, digest=name) for name, (images, labels) in built.items()}


def poison(train: ImageSet) -> Poisoned:
    """BadNets on the training split: a checkerboard in the corner, all of other classes to class 0."""
    return craft("badnets", [intent("badnets", SINGLE["badnets"], POLICY, TRIGGER)], Context(train=train, seed=0))


def load(splits: dict[str, ImageSet]) -> Planted:
    """The committed network with its data. Raises UserError where its weights are not those that were committed."""
    poisoned = poison(splits["train"])
    data = poisoned.received(splits["train"])
    return Planted(data, poisoned, splits["test"], splits["reserve"], models.load(FOLDER))
