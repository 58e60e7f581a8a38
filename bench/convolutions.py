"""The limit of a training: images/s of a network's convolutions alone, forward and backward, of the same shapes."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from pairs import timed
from unpoison.compute.device import autocast, pick_device
from unpoison.models import Classifier


def convolutions(model: Classifier) -> list[tuple[nn.Conv2d, torch.Size]]:
    """Convolutions in the order of a forward pass, each with the shape that comes into it, of one image."""
    found: list[tuple[nn.Conv2d, torch.Size]] = []
    hooks = [
        layer.register_forward_pre_hook(lambda layer, inputs: found.append((layer, inputs[0].shape[1:])))
        for layer in model.modules()
        if isinstance(layer, nn.Conv2d)
    ]
    about = model.description
    with torch.no_grad():
        model.eval()(torch.zeros(1, about["channels"], *about["image_size"]))
    for hook in hooks:
        hook.remove()
    return found


def step_of(model: Classifier, batch_size: int) -> Callable[[], None]:
    """A training step's convolutions and nothing else, in the core's precision and memory layout."""
    device, found = pick_device(), convolutions(model)
    # In place, as the layers found are the model's own.
    model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]

    def drawn(shape: torch.Size) -> Tensor:
        return torch.randn(shape, device=device).to(memory_format=torch.channels_last)

    # The first convolution's input is the images, which need no gradient.
    inputs = [drawn(torch.Size((batch_size, *shape))).requires_grad_(i > 0) for i, (_, shape) in enumerate(found)]

    def forward() -> list[Tensor]:
        with autocast(device):
            return [layer(x) for (layer, _), x in zip(found, inputs, strict=True)]

    gradients = [drawn(output.shape).to(output.dtype) for output in forward()]

    def step() -> None:
        # All forward, then all backward, as in training: by then a layer's input has left the cache.
        computed = list(zip(found, inputs, forward(), gradients, strict=True))
        for (layer, _), x, output, gradient in reversed(computed):
            torch.autograd.grad(output, [each for each in (x, *layer.parameters()) if each.requires_grad], gradient)

    return step


def rate(model: Classifier, batch_size: int, steps: int) -> float:
    """Images per second of `steps` steps, after one that is not counted."""
    step = step_of(model, batch_size)
    step()
    return batch_size * steps / timed(lambda: [step() for _ in range(steps)])
