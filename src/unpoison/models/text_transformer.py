"""A transformer's encoder over the words of a text (Vaswani et al., "Attention Is All You Need", NeurIPS 2017).

Small, and trained from nothing: sinusoidal positions (sec. 3.5), layer norm in front of each block and behind the last, GELU,
and the average over the words in the place of a token for the class.
"""

from __future__ import annotations

import math
from typing import Annotated

import torch
from annotated_types import Ge, Le
from torch import Tensor, nn

from ..core.errors import ParameterError
from ..data.texts import PAD
from .classifier import Backbone
from .words import Dimensions, Tokens, Words, as_map, check_channels, text_backbone

Layers = Annotated[int, Ge(1), Le(24)]
Heads = Annotated[int, Ge(1), Le(64)]
# The paper's share of activations that training leaves out.
DROPOUT = 0.1


def positions(length: int, width: int, device: torch.device) -> Tensor:
    """Sine and cosine of each place, in turn, of wavelengths 2 pi to 10,000 * 2 pi, float32 [length, width]."""
    place = torch.arange(length, dtype=torch.float32, device=device)[:, None]
    even = torch.arange(0, width, 2, dtype=torch.float32, device=device)
    angle = place * torch.exp(even * (-math.log(10_000) / width))
    return torch.stack([angle.sin(), angle.cos()], 2).flatten(1)


class _Encoder(nn.Module):
    def __init__(self, tokens: int, width: int, layers: int, heads: int) -> None:
        super().__init__()
        self.words = Words(tokens, width)
        layer = nn.TransformerEncoderLayer(
            width, heads, 4 * width, DROPOUT, activation="gelu", batch_first=True, norm_first=True
        )
        self.encoder = nn.TransformerEncoder(layer, layers, norm=nn.LayerNorm(width), enable_nested_tensor=False)
        self.scale = math.sqrt(width)

    def forward(self, images: Tensor) -> Tensor:
        ids, words = self.words(images)
        padding = ids == PAD
        # A text of no word would attend to nothing, which is no number; its first place counts for nothing in the average.
        padding[:, 0] = False
        placed = words * self.scale + positions(ids.shape[1], words.shape[2], ids.device)
        return as_map(self.encoder(placed, src_key_padding_mask=padding), ids)


def text_transformer(
    channels: int, *, width: Dimensions = 64, layers: Layers = 2, heads: Heads = 4, tokens: Tokens = 8192
) -> tuple[Backbone, int]:
    """The network without its head, and the number of its features: the width.

    Args:
        channels: channels of the samples, 2 of texts.
        width: dimensions of a word's vector, an even number that `heads` divides.
        layers: blocks of attention and two linear layers, the inner one four times as wide.
        heads: heads of attention.
        tokens: ids that have a vector, at least as many as the vocabulary.

    Raises:
        ParameterError: a width that is odd, or that the heads do not divide.
    """
    check_channels("text_transformer", channels)
    if width % 2 or width % heads:
        raise ParameterError(f"width: {width} given, allowed: an even multiple of heads, {heads}")
    return text_backbone(_Encoder(tokens, width, layers, heads)), width
