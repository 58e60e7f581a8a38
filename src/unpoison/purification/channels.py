"""Channels of batch norm, for purifiers that prune: which there are, which convolution feeds each, masks over all of them.

What a network without batch norm (ConvNeXt, transformers) has instead normalises over channels: none of it is a channel's own.
"""

from __future__ import annotations

from collections import Counter
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.func import functional_call
from torch.nn.modules.batchnorm import _BatchNorm

from ..compute.device import autocast
from ..core.errors import ParameterError
from ..models.classifier import Classifier
from .purifier import unsuited


class Pair(NamedTuple):
    """A convolution whose output is a batch norm's input, and that batch norm."""

    convolution: nn.Conv2d
    norm: _BatchNorm


def batch_norms(model: Classifier, what: str) -> dict[str, _BatchNorm]:
    """Batch norms with a weight and running statistics of their own, subclasses such as timm's `BatchNormAct2d` included.

    Args:
        model: any classifier.
        what: name of the method, for the error.

    Returns:
        Name in the network to module, in the network's order; a module that the network uses twice once.

    Raises:
        UserError: a network that has none.
    """
    found = {
        name: module
        for name, module in model.named_modules()
        if isinstance(module, _BatchNorm) and module.affine and module.running_var is not None
    }
    if not found:
        raise unsuited(
            what, model, "which has no batch norm; allowed: a network with batch norm, whose channels it prunes"
        )
    return found


@torch.no_grad()
def pairs(model: Classifier, what: str) -> list[Pair]:
    """Batch norms with the convolutions that feed them, found by following the tensors of one forward pass.

    The order of modules says nothing of that: a shortcut's convolution stands behind the block's last batch norm. A batch
    norm is paired if its input is the very tensor that a convolution returned, unchanged, or that tensor after pooling, which
    keeps channels apart and raises no channel's Lipschitz constant. Left out, and so never looked at, is one behind anything
    else: a sum (PreActResNet's first of each block but the first), a concatenation (DenseNet's first of each layer, and those
    between and behind its blocks); and a batch norm or a convolution that the network uses more than once.

    Args:
        model: any classifier; its mode is kept.
        what: name of the method, for the error.

    Returns:
        The pairs, in the order of the forward pass.

    Raises:
        UserError: a network that has none.
    """
    norms = set(batch_norms(model, what).values())
    used: Counter[nn.Module] = Counter()
    # By their identity, which holds while the tensors are kept; with the version, as ReLU may have written into them.
    outputs: dict[int, tuple[Tensor, int, nn.Conv2d]] = {}
    found: list[Pair] = []

    def after_convolution(module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        assert isinstance(module, nn.Conv2d)
        used[module] += 1
        outputs[id(output)] = (output, output._version, module)

    def after_pooling(module: nn.Module, given: tuple[Tensor, ...], output: Tensor) -> None:
        before, version, convolution = outputs.get(id(given[0]), (None, None, None))
        if before is not None and convolution is not None and version == before._version:
            outputs[id(output)] = (output, output._version, convolution)

    def before_norm(module: nn.Module, given: tuple[Tensor, ...]) -> None:
        assert isinstance(module, _BatchNorm)
        used[module] += 1
        _, version, convolution = outputs.get(id(given[0]), (None, None, None))
        if convolution is not None and version == given[0]._version:
            found.append(Pair(convolution, module))

    hooks = [norm.register_forward_pre_hook(before_norm) for norm in norms]
    hooks += [m.register_forward_hook(after_convolution) for m in model.modules() if isinstance(m, nn.Conv2d)]
    hooks += [
        m.register_forward_hook(after_pooling) for m in model.modules() if isinstance(m, nn.MaxPool2d | nn.AvgPool2d)
    ]
    shape, training = (model.description["channels"], *model.description["image_size"]), model.training
    try:
        model.eval()(torch.zeros(1, *shape, device=next(model.parameters()).device))
    finally:
        model.train(training)
        for hook in hooks:
            hook.remove()
    once = [pair for pair in found if used[pair.convolution] == used[pair.norm] == 1]
    if not once:
        raise unsuited(
            what, model, "which has no batch norm right behind a convolution; allowed: a network with such pairs"
        )
    return once


def outliers(values: Tensor, u: float) -> Tensor:
    """Which of a layer's values [n] lie above their mean plus u standard deviations, those of a sample (n - 1): bool [n].

    No value of n lies (n - 1) / sqrt(n) deviations above the mean or more: with u = 3 a layer of 10 channels or fewer keeps all.
    """
    if len(values) == 1:
        return torch.zeros_like(values, dtype=torch.bool)
    return values > values.mean() + u * values.std()


@torch.no_grad()
def prune(norm: _BatchNorm, channels: Tensor, *, bias: bool) -> None:
    """Set the weights of some channels of a batch norm to 0, in place, and with `bias` their biases: `channels` bool [n].

    Without bias a channel is constant, with it 0 behind the batch norm.
    """
    norm.weight.masked_fill_(channels.to(norm.weight.device), 0)
    if bias:
        norm.bias.masked_fill_(channels.to(norm.bias.device), 0)


def normalised_by_batch(network: Classifier) -> Classifier:
    """Put batch norm into training mode, as published code has it, and all else into evaluation mode; the same network.

    Dropout would draw from the global random state.
    """
    network.eval()
    for module in network.modules():
        if isinstance(module, _BatchNorm):
            module.train()
    return network


class Masks:
    """A mask in [0, 1] for every channel of a network's batch norms, and passes with the weights times the masks.

    The network's modules stay as they are: each pass is a functional call with other weights.

    Attributes:
        network: the network, `normalised_by_batch`, in which no weight requires a gradient any more.
        values: the masks, float32 [n], 1 at first, layer after layer.
    """

    def __init__(self, network: Classifier, what: str) -> None:
        """Masks for a network that is the caller's own copy, on the device. Raises UserError as `batch_norms` does."""
        self.norms, self.what = batch_norms(network, what), what
        self.network = normalised_by_batch(network.requires_grad_(False))
        self.sizes = [len(norm.weight) for norm in self.norms.values()]
        # All layers' weights in one vector: masks and perturbations are then a few operations, not a few per layer.
        self.weights = torch.cat([norm.weight for norm in self.norms.values()])
        self.biases = torch.cat([norm.bias for norm in self.norms.values()])
        self.values = nn.Parameter(torch.ones_like(self.weights))

    def logits(self, images: Tensor, of_weights: Tensor, of_biases: Tensor | None = None) -> Tensor:
        """Logits float32 [b, classes] with batch norm's weights and biases times factors.

        Args:
            images: float32 [b, c, h, w] in [0, 1].
            of_weights: a factor for each weight, float32 [n].
            of_biases: a factor for each bias, float32 [n]; None for 1.
        """
        biases = self.biases if of_biases is None else self.biases * of_biases
        replaced: dict[str, Tensor] = {}
        parts = zip((self.weights * of_weights).split(self.sizes), biases.split(self.sizes), strict=True)
        for name, (weight, bias) in zip(self.norms, parts, strict=True):
            replaced |= {f"{name}.weight": weight, f"{name}.bias": bias}
        with autocast(images.device):
            out: Tensor = functional_call(self.network, replaced, (images,))
        return out.float()

    @torch.no_grad()
    def clip(self) -> None:
        """Put the masks back into [0, 1]."""
        self.values.clamp_(0, 1)

    def check(self, key: str, lr: float) -> None:
        """Raises ParameterError where a mask is not finite, with the key of the learning rate and its value."""
        if not self.values.isfinite().all():
            raise ParameterError(
                f"{key}: {lr} given, with which masks of {self.what} are not finite; allowed: a lower one"
            )

    def prune(self, model: Classifier, threshold: float) -> None:
        """Prune the channels of `model`, the same network, whose masks are at most a threshold: weights, not biases.

        Biases stay as the masks were trained for weights alone.
        """
        low = (self.values.detach() <= threshold).split(self.sizes)
        for norm, channels in zip(batch_norms(model, self.what).values(), low, strict=True):
            prune(norm, channels, bias=False)
