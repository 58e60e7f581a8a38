"""The settings of a federation, and what contradicts itself in them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from torch import Tensor

from ..core.errors import ParameterError, keys_of
from ..core.hyperparameters import Count, Epochs, NonNegative, Positive, Whole, check, one_of
from .aggregator import Aggregator, Updates
from .aggregators import AGGREGATORS
from .splits import LEAST


@dataclass(frozen=True, kw_only=True)
class Federation:
    """A federation: who trains on what, who attacks, and how the server puts updates together.

    Bagdasaryan et al., "How To Backdoor Federated Learning", AISTATS 2020, sections 3 and 4. Published code, with settings of
    other names: https://github.com/ebagdasa/backdoors101/blob/9f48fbb/tasks/fl/fl_task.py

    Attributes:
        clients: clients in all, n.
        per_round: clients that train in a round, m, drawn anew each time; None: all.
        rounds: rounds of training.
        local_epochs: epochs of a client's training in a round.
        split: `equal`: random parts of one size; `dirichlet`: other shares of each class for every client.
        alpha: concentration of `dirichlet`.
        eta: rate of the server, which adds eta * m / n times the aggregate, under `mean` eta / n times the sum; None: n / m, which
            adds the aggregate itself.
        aggregator: `name`, and the aggregator's own parameters.
        attackers: number of attackers: clients 0 to `attackers` - 1, whose parts are drawn as all others are.
        attack_round: round, from 1, that is the only one attacked, by the first `attackers` of its clients; None: attackers are
            such in every round.
        scale: factor of an attacker's update; the replacement of the model needs about n / eta.
        clip: largest Euclidean norm of a whole update, for differential privacy of clients; None: updates are not clipped.
        noise: deviation of the Gaussian noise on what the server adds.
        curve_every: the weights of every such round are kept for the curve of ACC and ASR, and those of the last one.
    """

    clients: Count = 10
    per_round: Count | None = None
    rounds: Epochs = 20
    local_epochs: Epochs = 2
    split: Literal["equal", "dirichlet"] = "equal"
    alpha: Positive | None = None
    eta: Positive | None = None
    aggregator: dict[str, Any] = field(default_factory=lambda: {"name": "mean"})
    attackers: Whole = 0
    attack_round: Count | None = None
    scale: Positive = 1.0
    clip: Positive | None = None
    noise: NonNegative = 0.0
    curve_every: Count = 1

    @property
    def drawn(self) -> int:
        """Clients of a round, m."""
        return self.clients if self.per_round is None else self.per_round

    @property
    def factor(self) -> float:
        """What the aggregate is multiplied by before the server adds it."""
        return 1.0 if self.eta is None else self.eta * self.drawn / self.clients

    def aggregate(self, updates: Updates) -> Tensor:
        """The aggregate of a round's updates, float32 [d]."""
        method, arguments = self._method()
        return method.aggregate(updates, **arguments)

    def without_attackers(self) -> Federation:
        """The same of honest clients alone."""
        return replace(self, attackers=0, attack_round=None, scale=1.0)

    @property
    def of_the_server(self) -> dict[str, Any]:
        """The settings that the server knows, without those of the attackers."""
        hidden = ("attackers", "attack_round", "scale", "curve_every")
        return {key: value for key, value in vars(self).items() if key not in hidden}

    def check(self) -> None:
        """Raises ParameterError for settings that contradict each other, or of which one would do nothing."""
        _at_most("per_round", self.drawn, self.clients, "the clients")
        _at_most("attackers", self.attackers, self.clients, "the clients")
        if (self.alpha is None) != (self.split == "equal"):
            allowed = "a number above 0" if self.split == "dirichlet" else "null"
            raise ParameterError(f"alpha: {self.alpha or 'null'} given, allowed with split {self.split}: {allowed}")
        if self.attack_round is not None:
            _at_most("attack_round", self.attack_round, self.rounds, "the rounds")
            _at_most("attackers", self.attackers, self.drawn, "the clients of a round, with attack_round")
        for key, value, nothing in (("attack_round", self.attack_round, None), ("scale", self.scale, 1.0)):
            if not self.attackers and value != nothing:
                raise ParameterError(f"{key}: {value} given, allowed with attackers 0: {nothing or 'null'}")
        if self.noise and self.clip is None:
            raise ParameterError(f"noise: {self.noise} given, allowed with clip null: 0, as nothing bounds an update")
        with keys_of("aggregator"):
            method, arguments = self._method()
            method.check(self.drawn, **arguments)

    def check_samples(self, count: int) -> None:
        """Raises ParameterError where `count` samples are too few for the clients."""
        if self.clients * LEAST > count:
            raise ParameterError(
                f"clients: {self.clients} given, allowed: up to {count // LEAST}, {LEAST} each of {count} training samples"
            )

    def _method(self) -> tuple[Aggregator, dict[str, Any]]:
        own = dict(self.aggregator)
        method: Aggregator = one_of(own.pop("name", None), AGGREGATORS, key="name")
        return method, check(own, method.parameters)


def _at_most(key: str, given: int, most: int, of_what: str) -> None:
    if given > most:
        raise ParameterError(f"{key}: {given} given, allowed: up to {most}, {of_what}")


def federation_of(values: Mapping[str, Any]) -> Federation:
    """The federation that a block of settings stands for; null leaves a setting at its default.

    Raises:
        ParameterError: an unknown key, a value of another type or out of range, or what `Federation.check` refuses.
    """
    given = {key: value for key, value in values.items() if value is not None}
    federation = Federation(**check(given, Federation))
    federation.check()
    return federation
