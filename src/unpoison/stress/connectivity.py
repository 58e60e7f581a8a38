"""Linear mode connectivity (Frankle et al. 2020) of a purified model and the backdoored one that it was made from.

Networks with weights on the line between the two: where ACC holds and ASR rises at once, the purified model lies at the edge
of the backdoored one's valley, and a few steps lead back (Min et al., NeurIPS 2024, whose published code has no such curve).

All weights lie on the line, a head that a method has drawn anew among them, and so do batch norm's means and variances:
both ends are then the two models to the bit, and no data are needed. Statistics that are measured anew for each point would
show a lower barrier in the middle where the two are far apart, and would give the ends other figures than the models have.
"""

from __future__ import annotations

from collections.abc import Iterator
from copy import deepcopy

import numpy as np
import torch
from torch import Tensor

from ..core.errors import UserError
from ..models.classifier import Classifier


def line(purified: Classifier, backdoored: Classifier, points: int) -> Iterator[tuple[float, Classifier]]:
    """Places t on the line, from 0 (the purified model) to 1 (the backdoored one), and the network at each.

    Args:
        purified: one end, left as it was.
        backdoored: the other end, left as it was.
        points: number of networks, the two ends among them.

    Yields:
        t, and one and the same network with the weights (1 - t) * purified + t * backdoored, in evaluation mode.

    Raises:
        UserError: weights of other names or shapes.
    """
    start, end = purified.state_dict(), backdoored.state_dict()
    if {k: v.shape for k, v in start.items()} != {k: v.shape for k, v in end.items()}:
        raise UserError("connectivity: weights of two networks given, allowed: those of one network")
    between = deepcopy(purified).eval()
    for t in np.linspace(0, 1, points).tolist():
        with torch.no_grad():
            # Asked for anew: a pass may lay the network's weights out anew, and those asked for before are then no longer its.
            for name, value in between.state_dict().items():
                value.copy_(_between(start[name], end[name], t))
        yield t, between


def _between(start: Tensor, end: Tensor, t: float) -> Tensor:
    # Whole numbers are counts of batches, which no network in evaluation mode looks at.
    if not start.is_floating_point():
        return start if t < 1 else end
    # `lerp` is exact at both ends.
    return torch.lerp(start, end.to(start.device), t)
