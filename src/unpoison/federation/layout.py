"""The weights of a network as one vector, which is what clients send and aggregators put together."""

from __future__ import annotations

import numpy as np
import torch
from torch import Tensor

from ..models.classifier import Classifier


class Layout:
    """Where each tensor of a network lies in the vector of its weights.

    Statistics of batch norm are averaged as weights are; the count of batches behind them, a whole number, is left out.
    """

    def __init__(self, model: Classifier) -> None:
        state = {name: value for name, value in model.state_dict().items() if value.is_floating_point()}
        self.shapes = {name: value.shape for name, value in state.items()}
        ends = np.cumsum([value.numel() for value in state.values()])
        self.places = {
            name: slice(int(end) - value.numel(), int(end))
            for (name, value), end in zip(state.items(), ends, strict=True)
        }
        # One layer's tensors follow each other.
        last = [self.places[name] for name in state if name.startswith("head.")]
        self.head = slice(last[0].start, last[-1].stop)

    def vector(self, model: Classifier) -> Tensor:
        """The weights as a vector on the CPU, float32 [d], a copy."""
        state = model.state_dict()
        return torch.cat([state[name].detach().reshape(-1).float().cpu() for name in self.shapes])

    def put(self, vector: Tensor, model: Classifier) -> None:
        """Set a network's weights."""
        state = model.state_dict()
        with torch.no_grad():
            for name, shape in self.shapes.items():
                state[name].copy_(vector[self.places[name]].view(shape))

    def hold_variances(self, vector: Tensor) -> None:
        """Variances of batch norm below 0 become 0, in place: scaled or noisy updates may lead there, and a root would be NaN."""
        for name, place in self.places.items():
            if name.endswith("running_var"):
                vector[place].clamp_min_(0)
