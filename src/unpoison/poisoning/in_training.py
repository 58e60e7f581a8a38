"""Triggers that are stamped while the victim trains: after augmentation, or anew at random in every epoch."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .choice import drawn_at_random
from .poisoned import Poisoned
from .trigger import eight_bit


class InTraining:
    """What `training.loop.fit` calls with each batch.

    Attributes:
        after_augmentation: whether it wants the augmented images (`poison_first: false`); they are then stamped as float
            images and stay unrounded, as in Struppek et al.'s code. Otherwise the result is rounded to 8 bits.
    """

    def __init__(self, poisoned: Poisoned, *, seed: int, classes: int) -> None:
        truth = poisoned.truth
        self.after_augmentation = not truth.policy.poison_first
        self._truth, self._triggers, self._seed, self._classes = truth, poisoned.triggers, seed, classes
        self._given = truth.labels_given(classes)

    def __call__(self, images: Tensor, labels: Tensor, samples: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        """Stamp and relabel.

        Args:
            images: float [b, c, h, w] in [0, 1], clean; may be written to.
            labels: int64 [b], the true ones.
            samples: int64 [b], indices in the training set.
            epoch: from 0.
        """
        keys = samples.cpu().numpy()
        number_of, given = self._truth.part[keys], self._given[keys]
        if self._truth.policy.random_poisoning:
            policy, true = self._truth.policy, self._truth.labels[keys]
            drawn = drawn_at_random(policy, true, keys, seed=self._seed, epoch=epoch)
            number_of = np.where(drawn, 0, -1)
            wanted = true if policy.label_policy == "clean_label" else policy.new_labels(true, self._classes)
            given = np.where(drawn, wanted, true)
        for number, trigger in enumerate(self._triggers):
            carriers = np.flatnonzero(number_of == number)
            rows = torch.from_numpy(carriers).to(images.device)
            with torch.no_grad():
                values = trigger.apply(images[rows].float() * 255, keys[carriers], train=True)
                if not self.after_augmentation:
                    values = eight_bit(values, trigger.rounding).float()
                elif trigger.rounding == "wrap":
                    values = values.remainder(256)
                images[rows] = (values / 255).clamp(0, 1).to(images.dtype)
        return images, torch.from_numpy(given).to(labels)
