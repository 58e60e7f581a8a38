"""The rounds of a federation: clients train from the global model, attackers among them, and the server adds an aggregate.

Bagdasaryan et al., "How To Backdoor Federated Learning", AISTATS 2020, section 4: an attacker trains on poisoned samples and sends
`scale` times his update; where that is n / eta and the others hardly move, the global model becomes his own ("model replacement").
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy

import numpy as np
import torch
from torch import Tensor

from ..compute.device import pick_device
from ..core.arrays import IntArray
from ..core.errors import ParameterError, keys_of
from ..core.progress import progress
from ..core.seeding import numpy_rng, torch_rng
from ..data.imageset import ImageSet
from ..models.classifier import Classifier
from ..training.checks import fact_of_divergence
from ..training.loop import History
from ..training.recipe import Recipe
from .aggregator import Updates, within
from .clients import Ask, Clients, Engine, Sent, in_turn
from .layout import Layout
from .settings import Federation
from .splits import hand_over, split_by_dirichlet, split_evenly

Keep = Callable[[int, Classifier], None]
"""(number of a round, from 1; the global model after it)"""


def clients_of(federation: Federation, number: int, *, seed: int) -> IntArray:
    """The clients of a round, by its number from 1, in the order that positions count in, int64 [m]."""
    rng = numpy_rng(seed, "federation/clients", number)
    return rng.permutation(federation.clients)[: federation.drawn]


def attackers_of(federation: Federation, *, seed: int) -> list[int]:
    """The clients that attack, in every round or in the one that is attacked."""
    if federation.attack_round is None:
        return list(range(federation.attackers))
    return [
        int(client) for client in clients_of(federation, federation.attack_round, seed=seed)[: federation.attackers]
    ]


def parts_of(federation: Federation, labels: IntArray, poisoned: IntArray, *, seed: int) -> list[IntArray]:
    """The samples of each client, sorted, each sample with one of them; the poisoned ones with attackers, where there are any.

    Args:
        federation: the settings.
        labels: true labels, int64 [n].
        poisoned: samples that the attack has changed, int64 [k].
        seed: seed of the run.

    Raises:
        ParameterError: too few samples for so many clients, or for shares so uneven.
    """
    federation.check_samples(len(labels))
    if federation.alpha is None:
        parts = split_evenly(len(labels), federation.clients, seed=seed)
    else:
        parts = split_by_dirichlet(labels, federation.clients, federation.alpha, seed=seed)
    attackers = attackers_of(federation, seed=seed)
    return hand_over(parts, poisoned, attackers, seed=seed) if attackers else parts


def server_step(
    federation: Federation,
    vector: Tensor,
    values: Tensor,
    clients: IntArray,
    past: dict[int, Tensor],
    layout: Layout,
    noise: Tensor,
) -> Tensor:
    """The global weights after a round, float32 [d].

    Args:
        federation: the settings.
        vector: global weights before it, float32 [d].
        values: updates as the clients sent them, float32 [m, d].
        clients: their numbers.
        past: by number of a client the sum of what it has sent for the last layer; brought up to date.
        layout: of the weights.
        noise: normal noise of deviation 1, float32 [d], or of no element where none is added.
    """
    if federation.clip is not None:
        values = within(values, federation.clip)
    for client, value in zip(map(int, clients), values, strict=True):
        sent = value[layout.head].clone()
        past[client] = past[client] + sent if client in past else sent
    updates = Updates(values, torch.stack([past[int(client)] for client in clients]))
    step = federation.factor * federation.aggregate(updates)
    if federation.noise:
        step = step + federation.noise * noise
    after = vector + step
    layout.hold_variances(after)
    return after


def train_federated(
    model: Classifier,
    clean: ImageSet,
    received: ImageSet,
    recipe: Recipe,
    federation: Federation,
    *,
    seed: int,
    what: str,
    keep: Keep | None = None,
    engine: Engine[History] = in_turn,
) -> History:
    """Train `model` in place in a federation; it ends on the device, in evaluation mode.

    Clients train on their part of `clean`, an attacker in a round that he attacks on his part of `received`: the server is told
    neither the parts nor who attacks.

    Args:
        model: any classifier.
        clean: training set as it is.
        received: the same samples as the attack left them; its overlay says which ones it changed. `clean` itself for none.
        recipe: of a client's training; `federation.local_epochs` take the place of its epochs, and each round begins with a fresh
            optimiser and the schedule's first step.
        federation: the settings.
        seed: seed of the run.
        what: name of the run, for messages and as the purpose of random draws.
        keep: called after every `curve_every`-th round and the last one.
        engine: where the clients run; the result is the same.

    Returns:
        A row per round, `epoch` its number: loss and accuracy in the clients' last local epoch, each sample on the labels that its
        client has, and the losses of those samples; NaN of clients that were not drawn.

    Raises:
        ParameterError: what `fit` refuses of a client's training; filters that whiten, as nobody has images of all; weights that
            are not finite after a round.
    """
    if recipe.whiten:
        raise no_whitening()
    overlay = received.overlay
    with keys_of("federation"):
        poisoned = np.zeros(0, np.int64) if overlay is None else overlay.index
        parts = parts_of(federation, clean.labels, poisoned, seed=seed)
    attackers = attackers_of(federation, seed=seed)
    clients = Clients(deepcopy(model), clean, received, parts, attackers, recipe, federation, seed, what)
    model.to(device=pick_device(), memory_format=torch.channels_last).eval()  # type: ignore[call-overload]

    def serve(ask: Ask) -> History:
        layout, past = Layout(model), dict[int, Tensor]()
        rows: list[dict[str, float]] = []
        losses = np.full((federation.rounds, len(clean)), np.nan, np.float32)
        for number in progress(range(1, federation.rounds + 1), what=what, unit="round", total=federation.rounds):
            before, drawn = layout.vector(model), clients_of(federation, number, seed=seed)
            sent = ask(number, before, drawn)
            updates = torch.stack([client.update for client in sent])
            if not updates.isfinite().all():
                raise _not_finite(federation, number, "an update is not finite")
            noise = torch.zeros(0)
            if federation.noise:
                noise = torch.randn(len(before), generator=torch_rng(seed, f"federation/{what}/noise", number))
            after = server_step(federation, before, updates, drawn, past, layout, noise)
            if not after.isfinite().all():
                raise _not_finite(federation, number, "the global weights are not finite")
            layout.put(after, model)
            if fact := fact_of_divergence(model, clean):
                raise _not_finite(federation, number, f"of the global model {fact}")
            for client, given in zip(map(int, drawn), sent, strict=True):
                losses[number - 1, parts[client]] = given.losses
            rows.append(_row(number, sent))
            if keep is not None and (number % federation.curve_every == 0 or number == federation.rounds):
                keep(number, model)
        return History(rows, losses)

    return engine(clients, serve)


def no_whitening() -> ParameterError:
    """The error for a recipe whose first layer is made from images of all the set."""
    return ParameterError("whiten: true given, allowed with federation: false, as nobody has images of all clients")


def _row(number: int, sent: list[Sent]) -> dict[str, float]:
    """A round's row: means over the samples of the clients' last local epochs."""
    sizes = [len(client.losses) for client in sent]
    means = {
        key: float(np.average([client.row[key] for client in sent], weights=sizes)) for key in ("loss", "accuracy")
    }
    return {"epoch": number, **means, "lr": sent[0].row["lr"]}


def _not_finite(federation: Federation, number: int, fact: str) -> ParameterError:
    """The error of a federation that came to nothing in a round."""
    eta = "null" if federation.eta is None else federation.eta
    return ParameterError(
        f"federation.scale: {federation.scale} given, with eta {eta} and noise {federation.noise}, with which in round {number} "
        f"{fact}; allowed: lower ones"
    )
