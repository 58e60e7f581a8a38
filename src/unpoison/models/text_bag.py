"""A bag of embeddings: the average of a text's word vectors, and a linear layer (fastText, Joulin et al., EACL 2017).

Joulin et al., "Bag of Tricks for Efficient Text Classification", sec. 2, without the n-grams of words and the hierarchical
softmax: figure 1's words alone, and the plain softmax of the head.
"""

from __future__ import annotations

from torch import Tensor, nn

from .classifier import Backbone
from .words import Dimensions, Tokens, Words, as_map, check_channels, text_backbone


class _Bag(nn.Module):
    def __init__(self, tokens: int, width: int) -> None:
        super().__init__()
        self.words = Words(tokens, width)

    def forward(self, images: Tensor) -> Tensor:
        ids, words = self.words(images)
        return as_map(words, ids)


def text_bag(channels: int, *, width: Dimensions = 64, tokens: Tokens = 8192) -> tuple[Backbone, int]:
    """The network without its head, and the number of its features: the width.

    Args:
        channels: channels of the samples, 2 of texts.
        width: dimensions of a word's vector.
        tokens: ids that have a vector, at least as many as the vocabulary.
    """
    check_channels("text_bag", channels)
    return text_backbone(_Bag(tokens, width)), width
