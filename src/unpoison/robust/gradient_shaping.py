"""Gradient shaping (Hong et al., "On the Effectiveness of Mitigating Data Poisoning Attacks with Gradient Shaping", 2020, sections
5 and 6): poison moves the weights by gradients that are longer than those of clean samples and point elsewhere, so each sample's
gradient is clipped, and noise is laid over their sum. It is the step of DP-SGD, here without an account of privacy.

Published code: https://github.com/Sanghyun-Hong/Gradient-Shaping/tree/19e43bd, by TensorFlow Privacy, for logistic regression and
shallow networks; here any network without batch norm, by the recipe. Its scripts give the noise as a deviation and divide it by
the clipping norm, which is `noise` here. Training there ends once the accuracy on the test set is that of a clean model; here after
the epochs.
"""

from __future__ import annotations

from collections.abc import Callable

from ..core.hyperparameters import NonNegative, Positive
from ..data.imageset import ImageSet
from ..models.classifier import Classifier
from ..training.loop import History, fit
from ..training.recipe import Recipe
from ..training.shaping import Shaped
from .robust import Keep, Robust, keep_nothing


def train(
    make_model: Callable[[], Classifier],
    data: ImageSet,
    recipe: Recipe,
    keep: Keep = keep_nothing,
    *,
    seed: int = 0,
    clip: Positive = 4.0,
    noise: NonNegative = 0.025,
) -> tuple[Classifier, History]:
    """Train on the set as received by clipped and noised gradients.

    Args:
        make_model: maker of the network, freshly initialised and without batch norm.
        data: the training set as received.
        recipe: recipe of the training.
        keep: where the training has its checkpoints.
        seed: seed for the order of the images, their augmentation and the noise.
        clip: greatest Euclidean length of a sample's gradient (0.1, 1, 2, 4 and 8 as published).
        noise: deviation of the noise on a batch's sum of gradients, in units of `clip` (0.00001 to 0.1 over `clip` as published).

    Raises:
        ParameterError: divergence.
        UserError: a network with batch norm.
    """
    model, what = make_model(), "gradient_shaping"
    hand = Shaped(clip=clip, noise=noise, seed=seed, what=what)
    return model, fit(model, data, recipe, seed=seed, what=what, hand=hand, checkpoints=keep(what))


ROBUST = Robust(train=train, inputs=("data",), per_sample=True)
