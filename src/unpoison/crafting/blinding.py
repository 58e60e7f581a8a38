"""The hand in training of an attacker who poisons the loss: several losses in each step, fixed or balanced, behind a gate."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from itertools import chain
from typing import Literal

import torch
from torch import Tensor

from ..compute.distributed import World
from ..core.errors import UserError
from ..models.classifier import Classifier
from ..training.hand import Loss, Objective
from ..training.mgda import Balance, Normalise
from .copying import Copying
from .evasion import EVASIONS, Batch, Evades, Evasion, Inside, inside
from .stamping import Stamping

Balancing = Literal["fixed", "mgda"]


@dataclass(frozen=True)
class Settings:
    """The attack's own parameters that matter in training, as in `attacks.blind.make`."""

    together: bool
    balance: Balancing
    scales: tuple[float, ...]
    normalise: Normalise
    loss_threshold: float | None
    window: int
    evasion: tuple[Evades, ...]

    @property
    def scale_of(self) -> dict[str, float]:
        """The fixed weight of each loss by name."""
        names = ("normal", "backdoor", *self.evasion)
        return {**dict.fromkeys(names, 1.0), **dict(zip(names, self.scales, strict=False))}


class Blinding(Copying):
    """Minimises the loss of the images as they are together with that of the stamped copies and those of evasion.

    Args:
        stamping: hand that it is made of.
        settings: weights, gate and evasions.
    """

    def __init__(self, stamping: Stamping, settings: Settings) -> None:
        super().__init__(stamping)
        self.settings, self.again, self.opened = settings, False, False
        # Passes that are looked into, or gone back through twice.
        self.eager = bool(settings.evasion) or (settings.together and settings.balance == "mgda")
        self.evasions: dict[str, Evasion] = {}

    def check(self, steps: int) -> None:
        threshold, window = self.settings.loss_threshold, self.settings.window
        if threshold is not None and window >= steps:
            allowed = f"1 to {steps - 1}" if steps > 1 else "a longer training, or loss_threshold: null"
            raise UserError(
                f"blind.window: {window} given, allowed with loss_threshold {threshold:g} in a training of {steps} steps: {allowed}"
            )

    def start(self, model: Classifier, here: World) -> None:
        self.here = here
        self.history = torch.zeros(self.settings.window, device=model.mean.device)
        self.recorded = torch.zeros((), dtype=torch.int64, device=model.mean.device)
        size = self.data.image_size
        self.evasions = {name: EVASIONS[name](model, here, size, self.seed) for name in self.settings.evasion}

    def objective(self, plain: Loss, model: Classifier, images: Tensor, labels: Tensor, samples: Tensor) -> Objective:
        total = self.here.total(len(samples), images.device)
        if not self._open():
            found = Objective(*plain(model, images, labels))
        else:
            copies, wanted, stamped = self.copied(images, samples)
            # Over the share, and so in expectation the mean over copies, in small batches as well.
            weights = stamped.float() / self.share
            batch = Batch(plain, model, images, labels, copies, self.aims(samples), wanted, weights, total)
            found = self._fixed(batch) if self.settings.balance == "fixed" else self._balanced(batch)
        if self.settings.loss_threshold is not None and not self.again:
            mean = found.losses.detach().float().sum() / total
            self.here.sum(mean)
            self.history[int(self.recorded) % len(self.history)] = mean
            self.recorded += 1
        # A second call before the step is that of Sharpness-Aware Minimisation, at other weights.
        self.again = True
        return found

    def after_step(self) -> None:
        self.again = False
        for evasion in self.evasions.values():
            evasion.after_step()

    def tensors(self) -> dict[str, Tensor]:
        own = {f"{name}.{key}": value for name, of in self.evasions.items() for key, value in of.tensors().items()}
        return {"history": self.history, "recorded": self.recorded, **own}

    def _open(self) -> bool:
        """Whether other losses than the normal one count: where a full window's mean is below the threshold."""
        if self.settings.loss_threshold is None:
            return True
        if not self.again:
            full = self.recorded >= len(self.history)
            self.opened = bool(full & (self.history.mean() < self.settings.loss_threshold))
        return self.opened

    def _fixed(self, batch: Batch) -> Objective:
        scale_of = self.settings.scale_of
        logits, losses, passes = self._passes(batch)
        # What is left of the normal loss, which the training's record keeps as it is.
        extra = -losses.sum()
        for each in passes:
            for name, loss in each.items():
                extra = extra + scale_of[name] * loss
        return Objective(logits, losses, extra)

    def _balanced(self, batch: Batch) -> Objective:
        """As `_fixed`, with the weights of MGDA. Each pass is gone back through at once, and its activations are then free."""
        balance = Balance(batch.model, self.here, batch.total)
        logits, losses, passes = self._passes(batch)
        for each in passes:
            balance.add(list(each.values()))
        # Their gradients are in what `weighed` gives.
        logits, losses = logits.detach(), losses.detach()
        value, _ = balance.weighed(self.settings.normalise)
        return Objective(logits, losses, value - losses.sum())

    def _passes(self, batch: Batch) -> tuple[Tensor, Tensor, Iterator[dict[str, Tensor]]]:
        """Logits and losses of the images as they are; and for each pass its losses by name, sums over this process's samples."""
        count = len(batch.labels)
        images, labels = batch.images, batch.labels
        if self.settings.together:
            images, labels = torch.cat([images, batch.copies]), torch.cat([labels, batch.wanted])
        with self._looking(batch.model) as passed:
            logits, losses = batch.plain(batch.model, images, labels)
        first = [Inside(of.raw, of.features, slice(0, count)) for of in passed]
        for evasion in self._of_copies().values():
            evasion.clean(batch, first[0], again=self.again)
        found = {"normal": losses[:count].sum()}
        if not self.settings.together:
            return logits, losses, chain([found], self._apart(batch), self._own(batch))
        second = [Inside(of.raw, of.features, slice(count, None)) for of in passed]
        found |= self._of_stamped(batch, losses[count:], second)
        return logits[:count], losses[:count], chain([found], self._own(batch))

    def _apart(self, batch: Batch) -> Iterator[dict[str, Tensor]]:
        """The copies in a pass of their own."""
        # The whole batch passes, stamped or not: batch norm has as many samples to average over, however few are stamped.
        with self._looking(batch.model) as passed:
            _, losses = batch.plain(batch.model, batch.copies, batch.wanted)
        yield self._of_stamped(batch, losses, passed)

    def _of_stamped(self, batch: Batch, losses: Tensor, passed: list[Inside]) -> dict[str, Tensor]:
        found = {"backdoor": (losses * batch.weights).sum()}
        for name, evasion in self._of_copies().items():
            found[name] = evasion.loss(batch, passed[0], again=self.again)
        return found

    def _own(self, batch: Batch) -> Iterator[dict[str, Tensor]]:
        for name, evasion in self.evasions.items():
            if evasion.own_pass:
                yield {name: evasion.loss(batch, None, again=self.again)}

    def _of_copies(self) -> dict[str, Evasion]:
        return {name: evasion for name, evasion in self.evasions.items() if not evasion.own_pass}

    def _looking(self, model: Classifier) -> AbstractContextManager[list[Inside]]:
        """What passes inside the network, where an evasion asks for it."""
        return inside(model) if self._of_copies() else nullcontext([])
