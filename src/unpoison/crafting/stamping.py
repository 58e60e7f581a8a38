"""The hand in training that stamps: triggers after augmentation, drawn anew in every epoch, or other ones on cover samples."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..core.arrays import IntArray
from ..data.imageset import ImageSet
from ..poisoning.choice import chosen_anew
from ..poisoning.poisoned import Poisoned
from ..poisoning.trigger import Trigger, applied, crossed, eight_bit
from ..training.hand import Hand


class Stamping(Hand):
    """Stamps and relabels the samples of each batch: the same ones in every epoch, or with `random_poisoning` others.

    Which samples, and whatever is drawn for one of them, follows from (seed, epoch, sample), so that neither the batch nor the
    number of processes matters, and the shares are exact in expectation however small a batch is.

    Attributes:
        after_augmentation: whether it takes the augmented images (`poison_first: false`). They are then stamped as float
            images and not rounded, as in Struppek et al.'s code; otherwise the result is rounded to 8 bits.
        poisoned: truth and triggers.
        data: clean training set.
        seed: seed of the attacker.
    """

    def __init__(self, poisoned: Poisoned, data: ImageSet, *, seed: int) -> None:
        self.poisoned, self.data, self.seed = poisoned, data, seed
        self.after_augmentation = not poisoned.truth.policy.poison_first
        self._given = poisoned.truth.labels_given(len(data.classes))

    def drawn(self, samples: IntArray, epoch: int) -> tuple[IntArray, IntArray, IntArray]:
        """Of a batch's samples the poisoned ones and the covers, as trigger numbers int64 [b] with -1 for none, and the labels."""
        truth, policy = self.poisoned.truth, self.poisoned.truth.policy
        if not policy.random_poisoning:
            part = truth.part[samples].astype(np.int64)
            mask = truth.mask[samples]
            return np.where(mask, part, -1), np.where(mask, -1, part), self._given[samples]
        # Anew in every epoch: the choice that is kept is one draw of many and counts for nothing here. One trigger alone.
        true = truth.labels[samples]
        poison, cover = chosen_anew(policy, true, samples, seed=self.seed, epoch=epoch)
        new = true if policy.label_policy == "clean_label" else policy.new_labels(true, len(self.data.classes))
        return np.where(poison, 0, -1), np.where(cover, 0, -1), np.where(poison, new, true)

    def shares(self) -> tuple[float, float]:
        """The shares of the training samples that are poisoned and that are covers; with `random_poisoning` their expectations."""
        truth, policy = self.poisoned.truth, self.poisoned.truth.policy
        if not policy.random_poisoning:
            return float(truth.mask.mean()), float(truth.cover.mean())
        poison, cover = (float(mask.mean()) for mask in (policy.candidates(truth.labels), policy.covers(truth.labels)))
        return policy.poison_rate * poison, policy.poison_rate * policy.cover_ratio * cover

    def trained(self) -> tuple[Trigger, ...]:
        """The triggers once the victim is trained: those that were trained with it as they are now, the others as before."""
        return self.poisoned.triggers

    def stamp(self, images: Tensor, labels: Tensor, samples: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        # The choice of samples is kept by index in NumPy, whatever device the batch is on.
        keys = samples.cpu().numpy()
        poison, cover, given = self.drawn(keys, epoch)
        for number, trigger in enumerate(self.poisoned.triggers):
            for carriers, is_cover in ((poison == number, False), (cover == number, True)):
                rows = torch.from_numpy(np.flatnonzero(carriers)).to(images.device)
                chosen = images[rows].float() * 255
                with torch.no_grad():
                    if is_cover and trigger.crosses:
                        others = self.data.tensor(trigger.partners(keys[carriers], len(self.data), epoch=epoch))
                        values = crossed(trigger, chosen, keys[carriers], others.to(chosen), epoch=epoch)
                    else:
                        values = applied(trigger, chosen, keys[carriers], train=True)
                    # The same 8 bits as a stamp that is kept; augmented images keep their fractions, and "wrap" its modulo.
                    if not self.after_augmentation:
                        values = eight_bit(values, trigger.rounding).float()
                    elif trigger.rounding == "wrap":
                        values = values.remainder(256)
                    images[rows] = (values / 255).clamp(0, 1).to(images.dtype)
        return images, torch.from_numpy(given).to(labels)
