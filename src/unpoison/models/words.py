"""What networks for texts share: from a sample's bytes to its token ids, an embedding of each, and a map of words.

A text comes in as an image does, float [n, 2, 1, length], and its pixels are the two bytes of each token id
(`data.texts`). Networks for texts normalise by `NORMALISATION`, which gives the bytes back as they were.
"""

from __future__ import annotations

from typing import Annotated

import torch
from annotated_types import Ge, Le
from torch import Tensor, nn

from ..core.errors import ParameterError
from ..data.texts import CHANNELS, MOST_IDS, PAD, SPECIAL, UNKNOWN
from .classifier import Backbone, Classifier, GlobalAverage

NORMALISATION = (0.0, 0.0), (1 / 255, 1 / 255)
"""Mean and standard deviation of the two channels, with which a byte that was divided by 255 is whole again."""
Tokens = Annotated[int, Ge(len(SPECIAL)), Le(MOST_IDS)]
Dimensions = Annotated[int, Ge(2), Le(4096)]


def check_channels(name: str, channels: int) -> None:
    """Raises ParameterError where the samples are no texts."""
    if channels != CHANNELS:
        raise ParameterError(f"name: {name} given for images of {channels} channels, allowed: for texts")


class Words(nn.Module):
    """From bytes float [n, 2, 1, length] to ids, int64 [n, length], and their embeddings [n, length, width].

    An id that has no embedding is the unknown word's. Padding is all zeros and is not trained.
    """

    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.embedding = nn.Embedding(tokens, width, padding_idx=PAD)
        # Texts average over many words: of length 1 each, whatever the width.
        with torch.no_grad():
            self.embedding.weight.normal_(0, width**-0.5)
            self.embedding.weight[PAD].zero_()

    def forward(self, images: Tensor) -> tuple[Tensor, Tensor]:
        ids = ids_in(images, self.embedding.num_embeddings)
        return ids, self.embedding(ids)


def ids_in(images: Tensor, known: int) -> Tensor:
    """Token ids, int64 [n, length], of bytes float [n, 2, 1, length]; from `known` on an id is the unknown word's."""
    # Rounded: the way to [0, 1] and back is not exact.
    pairs = images.float().round().long()[:, :, 0]
    ids = pairs[:, 0] + 256 * pairs[:, 1]
    return torch.where(ids < known, ids, UNKNOWN)


def vectors_of(model: Classifier) -> int | None:
    """Number of token ids that a network for texts has a vector of; None of one that is made for the vocabulary at hand."""
    return next((module.embedding.num_embeddings for module in model.modules() if isinstance(module, Words)), None)


def as_map(words: Tensor, ids: Tensor) -> Tensor:
    """Vectors of words [n, length, width] as a map [n, width, 1, length] whose average over all places is that of the words."""
    there = (ids != PAD).to(words.dtype)
    share = there * (ids.shape[1] / there.sum(1, keepdim=True).clamp(min=1))
    return (words * share[..., None]).transpose(1, 2)[:, :, None]


def text_backbone(body: nn.Module) -> Backbone:
    """A backbone of a body that ends in `as_map`: the features are the average of a text's words."""
    backbone = Backbone(body, GlobalAverage(), traceable=False)
    backbone.normalisation = NORMALISATION
    return backbone
