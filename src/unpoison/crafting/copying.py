"""The hand in training that leaves the images as they are and trains on stamped copies beside them."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..core.errors import UserError
from ..poisoning.trigger import applied
from .stamping import Stamping


class Copying(Stamping):
    """Copies each batch after its augmentation and stamps what `drawn` says; the batch itself keeps its images and labels.

    Which samples are copied follows from (seed, epoch, sample), as for `Stamping`. `poison_first` has no part in it.

    Attributes:
        epoch: number of the present epoch, from 0.
        share: share of the training samples of which a stamped copy is trained on, the covers' too; with `random_poisoning`
            its expectation.
    """

    def __init__(self, stamping: Stamping) -> None:
        super().__init__(stamping.poisoned, stamping.data, seed=stamping.seed)
        self.epoch = 0
        self.share = sum(self.shares())
        # By which the copies' loss is divided; nothing would be taught.
        if not self.share:
            raise UserError("attack.poison_rate: 0 given, with which no sample has a stamped copy; allowed: more")

    def start_epoch(self, epoch: int, epochs: int) -> None:
        self.epoch = epoch

    def stamp(self, images: Tensor, labels: Tensor, samples: Tensor, epoch: int) -> tuple[Tensor, Tensor]:
        return images, labels

    def copied(self, images: Tensor, samples: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """A copy of a batch, as float images that are not rounded.

        Args:
            images: augmented images, float [b, c, h, w] in [0, 1]; not written to.
            samples: indices in the training set, int64 [b].

        Returns:
            Images, of which the stamped ones carry the trigger and the others are as they were; labels, int64 [b], those of
            stamped copies the attacker's; which are stamped, bool [b].
        """
        keys = samples.cpu().numpy()
        poison, cover, given = self.drawn(keys, self.epoch)
        number_of = np.maximum(poison, cover)
        copies = images.clone()
        for number, trigger in enumerate(self.poisoned.triggers):
            rows = torch.from_numpy(np.flatnonzero(number_of == number)).to(images.device)
            with torch.no_grad():
                values = applied(trigger, images[rows].float() * 255, keys[number_of == number], train=True)
                copies[rows] = (values / 255).clamp(0, 1).to(images.dtype)
        return copies, torch.from_numpy(given).to(images.device), torch.from_numpy(number_of >= 0).to(images.device)

    def aims(self, samples: Tensor) -> Tensor:
        """The label that the attacker would have for each sample, stamped or not: int64 [b]."""
        truth, keys = self.poisoned.truth, samples.cpu().numpy()
        true, number_of = truth.labels[keys], truth.part[keys]
        # With `complex` each sample's own, which is known of those that are stamped.
        given = None if truth.given is None else truth.given[keys]
        # Of several triggers each sample has its own, and one without any is taken for the first's.
        wanted = truth.policy.new_labels(true, len(self.data.classes), given)
        for number, part in enumerate(truth.parts[1:], 1):
            own = number_of == number
            wanted[own] = part.policy.new_labels(
                true[own], len(self.data.classes), None if given is None else given[own]
            )
        return torch.from_numpy(wanted).to(samples.device)
