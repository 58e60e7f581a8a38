"""Any torchvision classifier that ends in one linear layer, as `torchvision:NAME`.

The library builds and initialises its own network, and its parts are put together anew as a backbone and a head; pretrained
weights still go in by the library's names. `FAMILIES` says how, a row per file of `torchvision.models`; networks of other
files are refused.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

import torch
import torch.nn.functional as F
import torchvision  # type: ignore[import-untyped]
from torch import Tensor, nn

from ..core.errors import ParameterError, UserError
from .classifier import Backbone, GlobalAverage
from .pretrained import put_weights, read_weights, unavailable

Normalisation = tuple[tuple[float, ...], tuple[float, ...]]
# Side of the map that Inception-v3's auxiliary head was made for, from an image of 299 px.
AUXILIARY_SIDE = 17


class GreyToRGB(nn.Module):
    """One channel [n, 1, h, w] as three equal ones, for stems that take three."""

    def forward(self, x: Tensor) -> Tensor:
        return x.expand(-1, 3, -1, -1)


class Tokens(nn.Module):
    """The encoder of torchvision's ViT: images to tokens [n, 1 + patches, d], the class token first."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.conv_proj, self.encoder, self.class_token = network.conv_proj, network.encoder, network.class_token

    def forward(self, x: Tensor) -> Tensor:
        patches = self.conv_proj(x).flatten(2).transpose(1, 2)
        out: Tensor = self.encoder(torch.cat([self.class_token.expand(len(patches), -1, -1), patches], 1))
        return out


class TokenBackbone(Backbone):
    """The class token is what the head reads; the patch tokens, a square of them, are the map."""

    def __init__(self, body: nn.Module) -> None:
        super().__init__(body, nn.Identity(), traceable=False)

    def pool(self, raw: Tensor) -> Tensor:
        return raw[:, 0]

    def spatial(self, raw: Tensor) -> Tensor:
        # Square, as torchvision's ViT takes square images only; the class token is left out.
        side = int((raw.shape[1] - 1) ** 0.5)
        return raw[:, 1:].transpose(1, 2).unflatten(2, (side, side))


class AuxiliaryBackbone(Backbone):
    """A body cut into stages, with an auxiliary head after each stage but the last."""

    def __init__(self, stages: Sequence[nn.Module], heads: Sequence[nn.Module], pooling: nn.Module) -> None:
        super().__init__(nn.Sequential(*stages), pooling)
        self.heads = nn.ModuleList(heads)

    def with_auxiliary(self, images: Tensor) -> tuple[Tensor, tuple[Tensor, ...]]:
        if not self.training:
            return self(images), ()
        # In evaluation mode the heads are not computed at all: nothing reads them.
        *early, last = self.body.children()
        auxiliary, x = [], images
        for stage, head in zip(early, self.heads, strict=True):
            x = stage(x)
            auxiliary.append(head(x))
        return last(x), tuple(auxiliary)


class InceptionHead(nn.Module):
    """Inception-v3's auxiliary head; a map smaller than it was made for is enlarged (nearest neighbour) first."""

    def __init__(self, head: nn.Module) -> None:
        super().__init__()
        self.head = head

    def forward(self, x: Tensor) -> Tensor:
        height, width = (max(side, AUXILIARY_SIDE) for side in x.shape[2:])
        if (height, width) != x.shape[2:]:
            x = F.interpolate(x, size=(height, width), mode="nearest")
        out: Tensor = self.head(x)
        return out


Parts = tuple[Backbone, nn.Linear]


def _parts(network: Any, names: str) -> list[nn.Module]:
    """The modules of a network with these names, separated by blanks, in this order."""
    return [getattr(network, name) for name in names.split()]


def _with_fc(body: str) -> Callable[[Any, nn.Module], Parts]:
    """How to take apart a network that is a chain of modules, the global average and `fc`."""
    return lambda network, first: (
        Backbone(nn.Sequential(first, *_parts(network, body)), GlobalAverage()),
        network.fc,
    )


def _with_classifier(body: str, pooling: str) -> Callable[[Any, nn.Module], Parts]:
    """How to take apart a chain of modules, pooling, and a sequence of layers with the linear one last."""

    def take(network: Any, first: nn.Module) -> Parts:
        # Dropout and hidden linear layers before the last one belong to the pooling half.
        average = [*_parts(network, pooling), nn.Flatten()] if pooling else [GlobalAverage()]
        pool = nn.Sequential(*average, *network.classifier[:-1])
        return Backbone(nn.Sequential(first, *_parts(network, body)), pool), network.classifier[-1]

    return take


def _convnext(network: Any, first: nn.Module) -> Parts:
    pooling = nn.Sequential(network.avgpool, *network.classifier[:-1])
    return Backbone(nn.Sequential(first, network.features), pooling, traceable=False), network.classifier[-1]


def _densenet(network: Any, first: nn.Module) -> Parts:
    # torchvision calls this last ReLU as a function, so it is no module of the network.
    body = nn.Sequential(first, network.features, nn.ReLU(inplace=True))
    return Backbone(body, GlobalAverage()), network.classifier


def _swin(network: Any, first: nn.Module) -> Parts:
    # `permute` brings its channels-last map to [n, d, h, w].
    body = nn.Sequential(first, *_parts(network, "features norm permute"))
    return Backbone(body, GlobalAverage(), traceable=False), network.head


def _vit(network: Any, first: nn.Module) -> Parts:
    return TokenBackbone(nn.Sequential(first, Tokens(network))), network.heads.head


def _inception(network: Any, first: nn.Module) -> Parts:
    # Cut after Mixed_6e, where the auxiliary head reads.
    stem = "Conv2d_1a_3x3 Conv2d_2a_3x3 Conv2d_2b_3x3 maxpool1 Conv2d_3b_1x1 Conv2d_4a_3x3 maxpool2"
    middle = "Mixed_5b Mixed_5c Mixed_5d Mixed_6a Mixed_6b Mixed_6c Mixed_6d Mixed_6e"
    early = nn.Sequential(first, *_parts(network, stem), *_parts(network, middle))
    late = nn.Sequential(*_parts(network, "Mixed_7a Mixed_7b Mixed_7c"))
    pooling = nn.Sequential(GlobalAverage(), network.dropout)
    return AuxiliaryBackbone([early, late], [InceptionHead(network.AuxLogits)], pooling), network.fc


def _googlenet(network: Any, first: nn.Module) -> Parts:
    # Cut after inception4a and inception4d, where the two auxiliary heads read.
    stem = "conv1 maxpool1 conv2 conv3 maxpool2 inception3a inception3b maxpool3 inception4a"
    stages = [
        nn.Sequential(first, *_parts(network, stem)),
        nn.Sequential(*_parts(network, "inception4b inception4c inception4d")),
        nn.Sequential(*_parts(network, "inception4e maxpool4 inception5a inception5b")),
    ]
    pooling = nn.Sequential(GlobalAverage(), network.dropout)
    return AuxiliaryBackbone(stages, [network.aux1, network.aux2], pooling), network.fc


@dataclass(frozen=True)
class Family:
    """A family of networks, by how they are constructed and taken apart.

    Attributes:
        take: function from the network and the body's first module to backbone and head.
        arguments: arguments of the constructor, beside the number of classes.
        auxiliary: names of the auxiliary heads' last linear layers.
        square: whether the constructor takes the one side of the images.
    """

    take: Callable[[Any, nn.Module], Parts]
    arguments: tuple[tuple[str, Any], ...] = ()
    auxiliary: tuple[str, ...] = ()
    square: bool = False


# `init_weights` keeps torchvision's own initialisation; left out, torchvision warns that its default will change.
WITH_AUXILIARY = (("aux_logits", True), ("init_weights", True))
FAMILIES: dict[str, Family] = {
    "alexnet": Family(_with_classifier("features", "avgpool")),
    "convnext": Family(_convnext),
    "densenet": Family(_densenet),
    "efficientnet": Family(_with_classifier("features", "avgpool")),
    "googlenet": Family(_googlenet, WITH_AUXILIARY, ("aux1.fc2", "aux2.fc2")),
    "inception": Family(_inception, WITH_AUXILIARY, ("AuxLogits.fc",)),
    "mnasnet": Family(_with_classifier("layers", "")),
    "mobilenetv2": Family(_with_classifier("features", "")),
    "mobilenetv3": Family(_with_classifier("features", "avgpool")),
    "regnet": Family(_with_fc("stem trunk_output")),
    "resnet": Family(_with_fc("conv1 bn1 relu maxpool layer1 layer2 layer3 layer4")),
    "shufflenetv2": Family(_with_fc("conv1 maxpool stage2 stage3 stage4 conv5")),
    "swin_transformer": Family(_swin),
    "vgg": Family(_with_classifier("features", "avgpool")),
    "vision_transformer": Family(_vit, square=True),
}


def check_name(name: str) -> None:
    """Raises ParameterError for a name that torchvision does not have, and for networks of no known family."""
    known = torchvision.models.list_models(module=torchvision.models)
    if name not in known:
        close = ", ".join(get_close_matches(name, known, n=5)) or "none is close"
        raise ParameterError(
            f"name: 'torchvision:{name}' given; torchvision {torchvision.__version__} has no such classifier, "
            f"similar: {close}"
        )
    if _family(name) not in FAMILIES:
        raise ParameterError(
            f"name: 'torchvision:{name}' given; its classifier is not one linear layer after a backbone that is known "
            f"here, allowed: networks of torchvision.models.{{{', '.join(FAMILIES)}}}"
        )


def build(
    name: str, *, num_classes: int, image_size: tuple[int, int], channels: int, pretrained: bool | str = False
) -> tuple[Backbone, nn.Linear, Normalisation | None]:
    """Backbone, head, and the mean and std that the pretrained weights were trained with (None without such weights).

    Args:
        name: name without the prefix, known to `check_name`.
        num_classes: number of logits of the head and the auxiliary heads.
        image_size: height and width in pixels.
        channels: channels of the images, 3, or 1 that is repeated three times.
        pretrained: weights as in `pretrained.LibraryOptions`.

    Raises:
        UserError: images the network cannot take, or pretrained weights that are missing or wrong.
    """
    full, family = f"torchvision:{name}", FAMILIES[_family(name)]
    if channels not in (1, 3):
        raise UserError(f"{full}: images of {channels} channels given, allowed: 1 or 3")
    arguments = {"num_classes": num_classes, **dict(family.arguments)}
    if family.square:
        if image_size[0] != image_size[1]:
            raise UserError(f"{full}: images of {image_size[0]}x{image_size[1]} px given, allowed: square ones")
        arguments["image_size"] = image_size[0]
    network = torchvision.models.get_model(name, weights=None, **arguments)
    # Backbone and head share the network's modules, so weights put into the network below reach them.
    backbone, head = family.take(network, GreyToRGB() if channels == 1 else nn.Identity())
    if pretrained is False:
        return backbone, head, None
    published = torchvision.models.get_model_weights(name).DEFAULT
    classifiers = [*family.auxiliary, *(key for key, module in network.named_modules() if module is head)]
    weights = _download(full, published) if pretrained is True else read_weights(str(pretrained))
    put_weights(
        network,
        weights,
        classifiers=classifiers,
        name=full,
        source=published.url if pretrained is True else str(pretrained),
    )
    if "aux_logits" in arguments:
        # These two were ported from TensorFlow, with images in [-1, 1]: torchvision undoes its ImageNet normalisation
        # inside the network (`transform_input`), which is not taken over.
        return backbone, head, ((0.5,) * 3, (0.5,) * 3)
    transforms = published.transforms()
    return backbone, head, (tuple(transforms.mean), tuple(transforms.std))


def _family(name: str) -> str:
    """The file of `torchvision.models` that a network is from."""
    return str(torchvision.models.get_model_builder(name).__module__).rpartition(".")[2]


def _download(name: str, published: Any) -> dict[str, Tensor]:
    """The publisher's state dict, under the present names of modules."""
    try:
        weights = published.get_state_dict(check_hash=True, weights_only=True)
    except (OSError, RuntimeError) as error:  # no connection; a file that is not what its name says
        raise unavailable(name, published.url, error) from None
    # DenseNet's files date from when module names could hold dots: denselayer1.norm.1 is denselayer1.norm1 today.
    return {re.sub(r"(denselayer\d+\.(?:norm|conv))\.(\d)", r"\1\2", key): value for key, value in weights.items()}
