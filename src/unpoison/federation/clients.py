"""The clients of a federation: what one does in a round, and where they do it, by default one after another in this process."""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..compute.device import pick_device
from ..core.arrays import IntArray
from ..core.seeding import derive
from ..data.imageset import ImageSet
from ..models.classifier import Classifier
from ..training.loop import fit
from ..training.recipe import Recipe
from .layout import Layout
from .settings import Federation

Result = TypeVar("Result")

ENGINE = "UNPOISON_FEDERATION"
"""The variable of the environment that says where clients run (`engines`)."""


class Sent(NamedTuple):
    """What comes of a client's training in a round.

    Attributes:
        update: its weights less the global ones, of an attacker times `scale`, float32 [d]. This alone is for the server.
        losses: of its samples in the last local epoch, float32 [k], for the record of the training.
        row: loss, accuracy and lr of that epoch, for the same.
    """

    update: Tensor
    losses: NDArray[np.float32]
    row: dict[str, float]


Ask = Callable[[int, Tensor, IntArray], list[Sent]]
"""(number of a round, global weights float32 [d], numbers of clients) -> what each of these sends, in their order"""


@dataclass(frozen=True)
class Clients:
    """Everything that the clients have, which a simulation plays and the server never sees.

    Attributes:
        model: the network; its weights do not matter.
        clean: training set as it is.
        received: the same samples as the attack left them.
        parts: samples of each client.
        attackers: numbers of those that attack.
        recipe: of a client's training; the federation's `local_epochs` take the place of its epochs.
        federation: the settings.
        seed: seed of the run.
        what: name of the run, for messages and as the purpose of random draws.
    """

    model: Classifier
    clean: ImageSet
    received: ImageSet
    parts: list[IntArray]
    attackers: list[int]
    recipe: Recipe
    federation: Federation
    seed: int
    what: str

    def train(self, number: int, client: int, before: Tensor) -> Sent:
        """One client's training in one round, from the global weights `before`, float32 [d]. Raises what `fit` does."""
        attacks = self.federation.attack_round in (None, number) and client in self.attackers
        layout, local = Layout(self.model), deepcopy(self.model)
        local.to(device=pick_device(), memory_format=torch.channels_last)  # type: ignore[call-overload]
        layout.put(before, local)
        record = fit(
            local,
            (self.received if attacks else self.clean).subset(self.parts[client]),
            replace(self.recipe, epochs=self.federation.local_epochs),
            seed=derive(self.seed, f"federation/{self.what}", number, client),
            what=f"{self.what}, round {number}, client {client}",
        )
        update = (layout.vector(local) - before) * (self.federation.scale if attacks else 1.0)
        last = record.epochs[-1]
        return Sent(update, record.losses[-1], {key: last[key] for key in ("loss", "accuracy", "lr")})


Engine = Callable[[Clients, Callable[[Ask], Result]], Result]
"""(the clients, the server's part, which asks them) -> what the server's part returns"""


def in_turn(clients: Clients, serve: Callable[[Ask], Result]) -> Result:
    """The engine that trains one client after another in this process."""
    return serve(lambda number, before, drawn: [clients.train(number, client, before) for client in map(int, drawn)])
