"""Path-Aware Minimisation (Min et al., "Uncovering, Explaining, and Mitigating the Superficial Safety of Backdoor Defense",
NeurIPS 2024, section 5): a purified model that lies next to the backdoored one is led back by a few poisoned samples.

Trained on images with an inverted trigger (`inversion`) and true labels, each step follows the gradient not at the weights w
but on the way back to the backdoored ones w0, at w + rho (w0 - w) / |w0 - w|, so that w leaves their neighbourhood.

Published code: https://github.com/AISafety-HKUST/stable_backdoor_purification/blob/37d2ef5/fine_tune/BTIDBF/sam.py and
btidbfu.py. What differs: the auxiliary heads of networks that have them are trained along; and what `inversion` says.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from copy import deepcopy

import torch
from torch import Tensor, nn

from ..compute.device import autocast
from ..core.hyperparameters import Count, Epochs, Fraction, NonNegative, Positive
from ..data.imageset import ImageSet
from ..models.classifier import Classifier
from ..training.loop import cross_entropy
from ..training.optimizer import Optimizer
from ..training.recipe import AugmentationName, Rate, Recipe
from .batches import on_device
from .inversion import Settings, unlearning_batches
from .purifier import Purifier


def purify(
    model: Classifier,
    reserve: ImageSet,
    *,
    seed: int = 0,
    rounds: Count = 5,
    pretrain_epochs: Epochs = 50,
    mask_epochs: Epochs = 20,
    generator_epochs: Epochs = 30,
    epochs: Epochs = 30,
    batch_size: Count = 128,
    lr: Positive = 0.01,
    momentum: Fraction = 0.1,
    rho: NonNegative = 0.5,
    inverted: Fraction = 0.2,
    width: Count = 32,
    mask_lr: Positive = 0.01,
    generator_lr: Positive = 0.001,
    image_bound: NonNegative = 0.3,
    feature_bound: NonNegative = 3.0,
    augment: list[AugmentationName] | tuple[AugmentationName, ...] = (),
) -> Classifier:
    """Unlearn the inverted trigger from the backdoored model's side; a new model is returned.

    Args:
        model: the backdoored classifier, left as it was.
        reserve: trusted, labelled images.
        seed: seed for the generator, the masks, the images it changes, their order and their augmentation.
        rounds: rounds of inversion and unlearning. 5 in the published code, 3 in its example.
        pretrain_epochs: passes over the reserve in which the generator learns to leave images as they are.
        mask_epochs: passes over the reserve in each round for the mask of benign features.
        generator_epochs: passes over the reserve in each round for the generator.
        epochs: passes over the reserve in each round for unlearning; 15 to 20 keep more accuracy, says the published code.
        batch_size: images per step, of all phases. 128 in the published code.
        lr: learning rate of SGD in unlearning, constant.
        momentum: momentum of SGD in unlearning.
        rho: way towards the backdoored weights, over all of them together, at which gradients are taken; 0: none. 0.5 in the
            published example; larger where a few poisoned samples still bring the backdoor back.
        inverted: share of each batch that the generator changes, rounded down, and one image more.
        width: channels of the generator's first level. 32 in the published code.
        mask_lr: learning rate of Adam for the mask.
        generator_lr: learning rate of Adam for the generator.
        image_bound: distance of the generator's images, a mean square of normalised ones, from which on it learns that alone.
        feature_bound: distance of their benign features, a mean square, from which on it learns that of the images alone.
        augment: augmentations by name, in order, out of `training.augment`, in all phases; [crop, flip] in the published code.

    Raises:
        UserError: a network that is not finite.
        ParameterError: a model or a generator that diverges, or batch norm over a single value.
    """
    settings = Settings(
        rounds=rounds,
        pretrain_epochs=pretrain_epochs,
        mask_epochs=mask_epochs,
        generator_epochs=generator_epochs,
        epochs=epochs,
        batch_size=batch_size,
        inverted=inverted,
        width=width,
        mask_lr=mask_lr,
        generator_lr=generator_lr,
        image_bound=image_bound,
        feature_bound=feature_bound,
        augment=augment,
    )
    tuned = on_device(deepcopy(model), "pam")
    weights = list(tuned.parameters())
    backdoored = [weight.detach().clone() for weight in weights]
    optimizer = Optimizer(Recipe(lr=lr, weight_decay=0.0), weights)
    for _, mixed, labels in unlearning_batches(tuned, reserve, settings, seed=seed, what="pam", lr=lr):
        with towards(backdoored, weights, rho):
            with autocast(mixed.device):
                _, losses = cross_entropy(tuned, mixed, labels)
            optimizer.zero_grad()
            losses.mean().backward()
        optimizer.step(Rate(lr, momentum))
    return tuned.eval()


@contextmanager
def towards(origin: Sequence[Tensor], weights: Sequence[nn.Parameter], rho: float) -> Iterator[None]:
    """Within the block the weights are w + rho (w0 - w) / (|w0 - w| + 1e-12), over all together; after it, w again.

    Batch norm's running statistics are, as published, those of the weights there.

    Args:
        origin: w0, in the order of the weights.
        weights: parameters that are moved in place.
        rho: length of the way, which may lead past w0; at w0 itself there is none.
    """
    # A kernel for all tensors at once, and the norm stays on the device: nothing waits for it.
    with torch.no_grad():
        # Copies, not a step back: rounding would not give the same weights again.
        before = [weight.detach().clone() for weight in weights]
        way = torch._foreach_sub(list(origin), before)
        length = torch.stack(torch._foreach_norm(way)).norm()
        torch._foreach_mul_(way, rho / (length + 1e-12))
        torch._foreach_add_(list(weights), way)
    try:
        yield
    finally:
        with torch.no_grad():
            torch._foreach_copy_(list(weights), before)


PURIFIER = Purifier(purify=purify)
