"""A training with an attacker's hand in it that is killed and goes on, against one that is not."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

import numpy as np
import pytest
import torch

from unpoison.compute.checkpoints import Checkpoints
from unpoison.data.imageset import ImageSet
from unpoison.models.classifier import Classifier
from unpoison.training.hand import Hand
from unpoison.training.loop import fit
from unpoison.training.recipe import Recipe

H = TypeVar("H", bound=Hand)


def killed_and_resumed(
    hand: Callable[[], H], network: Callable[[], Classifier], data: ImageSet, recipe: Recipe, *, at: int, folder: Path
) -> tuple[H, H]:
    """The hands of a whole training and of one that was killed before epoch `at`; victims and losses are the same bytes.

    Args:
        hand, network: make new ones, each time the same.
        data, recipe: what is trained on, and how.
        at: epoch, from 0, that the first try does not begin.
        folder: empty folder for the checkpoints.
    """
    kept = Checkpoints(folder, "key", what="test", unit="epoch")
    first, dying, second = hand(), hand(), hand()
    begin = dying.start_epoch

    def killed(epoch: int, epochs: int) -> None:
        if epoch == at:
            raise KeyboardInterrupt
        begin(epoch, epochs)

    dying.start_epoch = killed  # type: ignore[method-assign]
    whole, resumed = network(), network()
    record = fit(whole, data, recipe, seed=0, what="test", hand=first)
    with pytest.raises(KeyboardInterrupt):
        fit(network(), data, recipe, seed=0, what="test", hand=dying, checkpoints=kept)
    again = fit(resumed, data, recipe, seed=0, what="test", hand=second, checkpoints=kept)
    assert all(torch.equal(value, resumed.state_dict()[name]) for name, value in whole.state_dict().items())
    assert np.array_equal(record.losses, again.losses)
    return first, second
