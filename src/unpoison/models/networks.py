"""The networks of this package by name. What a stage runs (`core.code`) is the file of one of them, not this table."""

from __future__ import annotations

from collections.abc import Callable

from .classifier import Backbone
from .compact import compact, compact_resnet
from .densenet import densenet121
from .preactresnet import preactresnet18
from .resnet import resnet18, resnet34, resnet50
from .text_bag import text_bag
from .text_encoder import text_encoder
from .text_transformer import text_transformer
from .vgg import vgg19_bn

NETWORKS: dict[str, Callable[..., tuple[Backbone, int]]] = {
    "resnet18": resnet18,
    "resnet34": resnet34,
    "resnet50": resnet50,
    "preactresnet18": preactresnet18,
    "vgg19_bn": vgg19_bn,
    "densenet121": densenet121,
    "compact": compact,
    "compact_resnet": compact_resnet,
    "text_bag": text_bag,
    "text_transformer": text_transformer,
    "text_encoder": text_encoder,
}
TEXT_NETWORKS = ("text_bag", "text_transformer", "text_encoder")
"""Those for texts; all others are for images."""
VOCABULARY_NETWORKS = ("text_encoder",)
"""Those of them that are made for the words of a vocabulary, which is their second argument."""
