"""Triggers that are stamped while the victim trains: after augmentation, or anew at random in every epoch."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from .choice import drawn_at_random
from .poisoned import Poisoned
from .trigger import applied, eight_bit


class InTraining:
    """The attacker's hand in training, called by `training.loop.fit` with each batch.

    Attributes:
        after_augmentation: whether it takes the augmented images (`poison_first: false`). They are then stamped as float
            images and not rounded, as in Struppek et al.'s code; otherwise the result is rounded to 8 bits.
    """

    def __init__(self, poisoned: Poisoned, *, seed: int, classes: int) -> None:
        truth = poisoned.truth
        self.after_augmentation = not truth.policy.poison_first
        self._truth, self._triggers, self._seed, self._classes = truth, poisoned.triggers, seed, classes
        self._given = truth.labels_given(classes)

    def __call__(self, images: Tensor, labels: Tensor, samples: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        """Images and labels of a batch after the attack.

        Args:
            images: clean images, float [b, c, h, w] in [0, 1]; may be written to.
            labels: true labels, int64 [b].
            samples: indices in the training set, int64 [b].
            epoch: number of the epoch, from 0.
        """
        # The choice of samples is kept by index in NumPy, whatever device the batch is on.
        keys = samples.cpu().numpy()
        number_of, given = self._truth.part[keys], self._given[keys]
        # Anew in every epoch: the choice that is kept is one draw of many and counts for nothing here. One trigger alone.
        if self._truth.policy.random_poisoning:
            policy, true = self._truth.policy, self._truth.labels[keys]
            drawn = drawn_at_random(policy, true, keys, seed=self._seed, epoch=epoch)
            number_of = np.where(drawn, 0, -1)
            new = true if policy.label_policy == "clean_label" else policy.new_labels(true, self._classes)
            given = np.where(drawn, new, true)
        for number, trigger in enumerate(self._triggers):
            carriers = np.flatnonzero(number_of == number)
            rows = torch.from_numpy(carriers).to(images.device)
            with torch.no_grad():
                values = applied(trigger, images[rows].float() * 255, keys[carriers], train=True)
                # The same 8 bits as a stamp that is kept; augmented images keep their fractions, and "wrap" its modulo.
                if not self.after_augmentation:
                    values = eight_bit(values, trigger.rounding).float()
                elif trigger.rounding == "wrap":
                    values = values.remainder(256)
                images[rows] = (values / 255).clamp(0, 1).to(images.dtype)
        return images, torch.from_numpy(given).to(labels)
