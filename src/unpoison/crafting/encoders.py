"""Small networks that change images, trained by the attacker: their layers, their training images, their weights as arrays."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..compute.device import pick_device, to_float
from ..compute.finite import not_finite
from ..core.arrays import Pixels
from ..core.errors import ParameterError
from ..core.seeding import derive, numpy_rng
from ..data.imageset import ImageSet
from ..poisoning.trigger import Trigger

BLOCK = 64
"""Images that a network stamps at a time."""


class UNet(nn.Module):
    """A U-Net (Ronneberger et al., 2015) of two levels without normalisation, so that an image's result is its own.

    Args:
        inputs: channels of the input.
        outputs: channels of the output, which has the same height and width and any sign.
        width: channels of the first convolution; twice and four times as many below.
    """

    def __init__(self, inputs: int, outputs: int, width: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inputs, width, 3, padding=1)
        self.down1 = nn.Conv2d(width, 2 * width, 3, 2, padding=1)
        self.down2 = nn.Conv2d(2 * width, 4 * width, 3, 2, padding=1)
        self.narrow2 = nn.Conv2d(4 * width, 2 * width, 1)
        self.up2 = nn.Conv2d(4 * width, 2 * width, 3, padding=1)
        self.narrow1 = nn.Conv2d(2 * width, width, 1)
        self.up1 = nn.Conv2d(2 * width, width, 3, padding=1)
        self.last = nn.Conv2d(width, outputs, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        # Down: two strides of 2, so a pixel's change may depend on its surroundings.
        full = F.relu(self.first(x))
        half = F.relu(self.down1(full))
        quarter = F.relu(self.down2(half))
        # Up: each level is enlarged and joined to the same level of the way down, which keeps edges sharp.
        half = F.relu(self.up2(torch.cat([_enlarged(self.narrow2(quarter), half), half], 1)))
        full = F.relu(self.up1(torch.cat([_enlarged(self.narrow1(half), full), full], 1)))
        out: Tensor = self.last(full)
        return out


def _enlarged(x: Tensor, like: Tensor) -> Tensor:
    """`x` at the height and width of `like`; a factor of 2 would miss sides that are no multiple of 4."""
    return F.interpolate(x, size=like.shape[2:], mode="nearest")


def training_batches(data: ImageSet, size: int, steps: int, seed: int, purpose: str) -> Iterator[Tensor]:
    """`steps` batches of at most `size` different images, drawn anew each time: float32 [b, c, h, w] in [0, 1]."""
    generator, device = numpy_rng(seed, f"{purpose}/batches"), pick_device()
    for _ in range(steps):
        # Sorted, because images on disk are read fastest in their order, and a batch's loss knows none.
        index = np.sort(generator.choice(len(data), min(size, len(data)), replace=False))
        yield to_float(data.tensor(index), device)


def fresh(module: nn.Module, seed: int, purpose: str) -> list[nn.Parameter]:
    """A module's parameters, drawn from (seed, purpose) as in He et al. (2015) and moved to the device that trains.

    Args:
        module: network whose weights are overwritten in place.
        seed: seed of the attacker.
        purpose: name of the use, so that two networks of one attack differ.
    """
    # Drawn on the CPU in a fork of torch's generator: the same on every device, and the global state stays as it was.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(derive(seed, f"{purpose}/weights"))
        for layer in module.modules():
            if isinstance(layer, nn.Conv2d | nn.Linear):
                nn.init.kaiming_normal_(layer.weight, nonlinearity="relu")
                nn.init.zeros_(layer.bias)  # type: ignore[arg-type]
        for layer in module.modules():
            if isinstance(layer, UNet):
                # A change to an image starts small, or steps are lost on undoing noise.
                layer.last.weight.data *= 0.1
    return list(_moved(module, pick_device()).parameters())


def _moved(module: nn.Module, device: torch.device) -> nn.Module:
    """The module on `device`, its weights in the memory layout of the images."""
    # Twice as fast as the default layout on a CPU, whose images come in this one.
    return module.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]


def packed(module: nn.Module) -> Pixels:
    """All weights, and after them batch norm's running statistics, as one array, float32 [p]."""
    return torch.cat([value.detach().reshape(-1) for value in _state(module)]).cpu().numpy()


def _state(module: nn.Module) -> list[Tensor]:
    # Without batch norm's count of batches, an integer that nothing here depends on.
    return [*module.parameters(), *(buffer for buffer in module.buffers() if buffer.is_floating_point())]


def loaded(make: Callable[[], nn.Module], weights: Pixels, device: torch.device) -> nn.Module:
    """A network out of `make` with what `packed` gave, to be trained, on the device. RuntimeError: not as many values."""
    module = make()
    values = _state(module)
    with torch.no_grad():
        parts = torch.from_numpy(weights).split([value.numel() for value in values])
        for value, part in zip(values, parts, strict=True):
            value.copy_(part.view(value.shape))
    return _moved(module, device)


def check_trained(module: nn.Module, lr: float) -> None:
    """Raises ParameterError where a weight is not finite after training at this learning rate: stamps would be garbage."""
    if bad := not_finite(module):
        raise ParameterError(
            f"lr: {lr} given, with which the training of the {type(module).__name__.lower()} diverged: {len(bad)} of its "
            f"tensors are not finite ({bad[0]}); allowed: a lower one"
        )


def unpacked(make: Callable[[], nn.Module], weights: Pixels, device: torch.device) -> nn.Module:
    """A network out of `make` with these weights, frozen, in evaluation mode, on the device."""
    # A trigger may be first used in inference mode, and weights made there could not be used outside it.
    with torch.inference_mode(False):
        return loaded(make, weights, device).eval().requires_grad_(False)


def in_blocks(stamp: Callable[[Tensor], Tensor], images: Tensor) -> Tensor:
    """`stamp` of the images in blocks of `BLOCK`, the last one filled up with repeats.

    Which kernels run depends on the batch's size, and with them the last bit of a value: an image's stamp must not depend
    on how many others there are.
    """
    stamped = torch.empty_like(images)
    for start in range(0, len(images), BLOCK):
        block = images[start : start + BLOCK]
        # Repeats of the block's own images: their results are thrown away, their number keeps the kernels the same.
        full = block[torch.arange(BLOCK, device=images.device) % len(block)]
        stamped[start : start + BLOCK] = stamp(full.contiguous(memory_format=torch.channels_last))[: len(block)]
    return stamped


@dataclass(frozen=True)
class Network(Trigger):
    """A trigger that is a trained network.

    Attributes:
        weights: weights of the network, float32 [p].
        channels: channels of the images.
        width: channels of the first convolution of its U-Net.
    """

    weights: Pixels
    channels: int
    width: int

    @abstractmethod
    def empty(self) -> nn.Module:
        """The network without its weights."""

    def network(self, device: torch.device) -> nn.Module:
        """The network, built once for each device."""
        if device not in self._built:
            self._built[device] = unpacked(self.empty, self.weights, device)
        return self._built[device]

    # In the instance's dictionary and no field, so it is neither written to disk nor compared.
    @cached_property
    def _built(self) -> dict[torch.device, nn.Module]:
        return {}
