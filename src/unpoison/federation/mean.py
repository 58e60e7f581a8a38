"""Mean: federated averaging (McMahan et al., "Communication-Efficient Learning of Deep Networks from Decentralized Data",
AISTATS 2017, algorithm 1), every client with the same weight.

FedAvg weighs a client by its number of samples. Here all count alike, as in Backdoors101
(https://github.com/ebagdasa/backdoors101/blob/9f48fbb/tasks/fl/fl_task.py): a number of samples is what a client says of itself.
"""

from __future__ import annotations

from torch import Tensor

from .aggregator import Aggregator, Updates


def aggregate(updates: Updates) -> Tensor:
    """The mean of the updates, float32 [d]."""
    return updates.values.mean(0)


AGGREGATOR = Aggregator(aggregate=aggregate)
