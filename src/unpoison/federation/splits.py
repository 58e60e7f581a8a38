"""The training set shared out over clients: evenly, or with other shares of each class; and what attackers hold of it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from ..core.arrays import IntArray
from ..core.errors import ParameterError
from ..core.seeding import numpy_rng

LEAST = 2
"""Samples that a client has at least: batch norm needs two to average over."""
# Draws of shares, until every client has as many.
_DRAWS = 100


def split_evenly(count: int, clients: int, *, seed: int) -> list[IntArray]:
    """Random parts of `count` samples, sorted, whose sizes differ by one at most."""
    order = numpy_rng(seed, "federation/split").permutation(count)
    return [np.sort(part) for part in np.array_split(order, clients)]


def split_by_dirichlet(labels: IntArray, clients: int, alpha: float, *, seed: int) -> list[IntArray]:
    """Parts, sorted, with shares of each class that are drawn from a Dirichlet distribution (Hsu et al. 2019; Bagdasaryan et
    al., "How To Backdoor Federated Learning", AISTATS 2020, section 5).

    Args:
        labels: true labels, int64 [n].
        clients: number of parts.
        alpha: concentration: of a small one a client has few classes, of a large one all alike.
        seed: seed of the split.

    Raises:
        ParameterError: no draw out of a hundred that leaves every client two samples.
    """
    for draw in range(_DRAWS):
        rng = numpy_rng(seed, "federation/split", draw)
        parts: list[list[IntArray]] = [[] for _ in range(clients)]
        for label in np.unique(labels):
            members = rng.permutation(np.flatnonzero(labels == label))
            shares = rng.dirichlet(np.full(clients, alpha))
            # Of concentrations near 0 the generator may give none; such a draw leaves samples to nobody and is not taken.
            if not np.isfinite(shares).all():
                break
            # Rounded ends of shares that add up: every sample belongs to one client.
            ends = np.rint(shares.cumsum()[:-1] * len(members)).astype(np.int64)
            for part, found in zip(parts, np.split(members, ends), strict=True):
                part.append(found)
        joined = [np.sort(np.concatenate(part)) if part else np.zeros(0, np.int64) for part in parts]
        if min(map(len, joined)) >= LEAST and sum(map(len, joined)) == len(labels):
            return joined
    raise ParameterError(
        f"alpha: {alpha} given, with which none of {_DRAWS} draws leaves {clients} clients {LEAST} of {len(labels)} samples each; "
        "allowed: a larger one, or fewer clients"
    )


def hand_over(parts: Sequence[IntArray], poisoned: IntArray, attackers: Sequence[int], *, seed: int) -> list[IntArray]:
    """The parts after every poisoned sample has come to an attacker, in turn, for a clean one of his as long as he has any.

    Sizes stay as they are where the attackers hold as many samples as are poisoned; beyond that theirs grow.

    Args:
        parts: samples of each client, sorted.
        poisoned: samples that the attack has changed, int64 [k].
        attackers: numbers of the attackers among the clients, at least one.
        seed: seed of the draws.

    Returns:
        Samples of each client, sorted.
    """
    rng = numpy_rng(seed, "federation/attackers")
    owner = np.empty(sum(map(len, parts)), np.int64)
    for client, part in enumerate(parts):
        owner[part] = client
    given = rng.permutation(poisoned[~np.isin(owner[poisoned], attackers)])
    clean = {client: rng.permutation(parts[client][~np.isin(parts[client], poisoned)]) for client in attackers}
    for turn, sample in enumerate(given):
        attacker, place = attackers[turn % len(attackers)], turn // len(attackers)
        if place < len(clean[attacker]):
            owner[clean[attacker][place]] = owner[sample]
        owner[sample] = attacker
    return [np.flatnonzero(owner == client) for client in range(len(parts))]
