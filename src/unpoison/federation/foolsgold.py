"""FoolsGold (Fung et al., "The Limitations of Federated Learning in Sybil Settings", RAID 2020, algorithm 1).

Clients whose updates have pointed the same way over all rounds count as one attacker with many names, and weigh little. It is
made for clients of different data; of equal ones the honest resemble each other too, and a single attacker resembles nobody.

What differs: the indicative features are all weights of the last layer, without the optional filter by importance; and the
weights of the clients add up to 1, where the paper adds up weighted updates, so that the server's rate means the same here as
for other aggregators.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from ..core.hyperparameters import Positive
from .aggregator import Aggregator, Updates

# Less than this is between directions that differ in no digit of float32.
_EQUAL = 1e-6


def aggregate(updates: Updates, *, confidence: Positive = 1.0) -> Tensor:
    """The weighted mean of the updates, float32 [d]; 0 where every client has the weight 0.

    Args:
        updates: those of a round.
        confidence: factor of the logit that pushes weights to 0 and 1, the paper's kappa.
    """
    weights = client_weights(updates.past, confidence)
    total = weights.sum()
    if not total:
        return torch.zeros_like(updates.values[0])
    return (weights / total).float() @ updates.values


def client_weights(past: Tensor, confidence: float) -> Tensor:
    """The weight of each client, float64 [m] from 0 to 1, by what it has sent so far, [m, h]."""
    unit = F.normalize(past.double(), dim=1)
    # A client is not compared with itself; without any likeness, or with the contrary, there is nothing to hold against it.
    alike = (unit @ unit.T).fill_diagonal_(0)
    most = alike.max(1).values
    # Pardoning: an honest client that resembles an attacker is less like others than he is.
    ratio = torch.where(most[None, :] > most[:, None], most[:, None] / most[None, :].clamp_min(1e-12), 1.0)
    weights = (1 - (alike * ratio).max(1).values).clamp(0, 1)
    # What is left of equal updates by rounding would be raised to 1 below.
    weights[weights < _EQUAL] = 0.0
    if not weights.max():
        return weights
    weights = weights / weights.max()
    # Of 0 and 1 the logit is infinite, and held like all others.
    return (confidence * (weights.logit() + 0.5)).clamp(0, 1)


AGGREGATOR = Aggregator(aggregate=aggregate)
