"""The Query-based Reactivation Attack (Min et al., "Uncovering, Explaining, and Mitigating the Superficial Safety of Backdoor
Defense", NeurIPS 2024): small changes of an image that wake a backdoor in a purified model.

A generator learns to change images so that the purified model answers as the retuned one does (`retuning`), whose backdoor is
back, while a model that never saw poison keeps to the true label: what it finds is not just an adversarial perturbation.

Published code: https://github.com/AISafety-HKUST/stable_backdoor_purification/blob/37d2ef5/fine_tune/qra.py
It counts class 0 whatever the target is, and images of the target among the clean ones; here the attacker's labels count, on
the images that ASR counts. Its changed images are real numbers; here they are rounded to 8 bits, as an image is that is
handed to a model. The targets of the loss, which do not depend on the generator, are computed once.
"""

from __future__ import annotations

import math
from typing import Annotated

import numpy as np
import torch
import torch.nn.functional as F
from annotated_types import Gt, Le
from torch import Tensor, nn

from ..compute.device import autocast, pick_device, to_float
from ..compute.finite import not_finite
from ..compute.inference import BATCH, batches, frozen, logits_of
from ..core.arrays import IntArray
from ..core.errors import ParameterError
from ..core.hyperparameters import Count, Epochs, NonNegative, Positive
from ..core.progress import progress
from ..core.seeding import torch_rng
from ..data.imageset import ImageSet
from ..models.classifier import Classifier
from ..training.optimizer import Optimizer
from ..training.recipe import Rate, Recipe

Budget = Annotated[float, Gt(0), Le(255)]
WIDTH, MOMENTUM = 1024, 0.9


class Generator(nn.Module):
    """From images to changed ones, float32 [n, c, h, w] in [0, 1]: an MLP on the flattened, normalised image.

    Args:
        model: classifier whose image size, channels and normalisation it has.
        budget: largest change of a pixel, of 1.
        seed: seed for the weights.
        width: units of each hidden layer.
    """

    mean: Tensor
    std: Tensor

    def __init__(self, model: Classifier, *, budget: float, seed: int, width: int = WIDTH) -> None:
        super().__init__()
        self.budget = budget
        for name in ("mean", "std"):
            self.register_buffer(name, getattr(model, name).clone(), persistent=False)
        size = math.prod(model.description["image_size"]) * int(model.description["channels"])
        generator, layers = torch_rng(seed, "reactivation/weights"), list[nn.Module]()
        for inputs, outputs in ((size, width), (width, width), (width, width), (width, size)):
            # Torch's own initial weights, but of a generator of ours: no global random state is touched.
            layer = torch.nn.utils.skip_init(nn.Linear, inputs, outputs)
            with torch.no_grad():
                for parameter in layer.parameters():
                    parameter.copy_((torch.rand(parameter.shape, generator=generator) * 2 - 1) * inputs**-0.5)
            layers += [layer, nn.ReLU()]
        self.layers = nn.Sequential(*layers[:-1], nn.Tanh())

    def forward(self, images: Tensor) -> Tensor:
        given = (images - self.mean) / self.std
        change: Tensor = self.layers(given.flatten(1)).view_as(given)
        return (images + self.budget * change.float()).clamp(0, 1)


def query_loss(purified: Tensor, clean: Tensor, wanted: Tensor, labels: Tensor, alpha: float) -> Tensor:
    """alpha * KL(wanted || softmax(purified)) + CE(clean, labels), each a mean over images.

    Args:
        purified: the purified model's logits of the changed images, float32 [b, classes].
        clean: the clean model's.
        wanted: the retuned model's probabilities for the images as they were.
        labels: true labels, int64 [b].
        alpha: weight of the divergence.
    """
    divergence = F.kl_div(F.log_softmax(purified, 1), wanted, reduction="batchmean")
    return alpha * divergence + F.cross_entropy(clean, labels)


def train_generator(
    purified: Classifier,
    retuned: Classifier,
    clean: Classifier,
    reserve: ImageSet,
    stamped: ImageSet,
    *,
    seed: int = 0,
    images: Count = 500,
    batch_size: Count = 128,
    query_epochs: Epochs = 50,
    query_lr: Positive = 0.1,
    alpha: NonNegative = 0.2,
    budget: Budget = 16.0,
) -> Generator:
    """Train a generator by queries to three models, which stay as they are: SGD with momentum 0.9 at a constant rate.

    Args:
        purified: model to be attacked.
        retuned: model that `retune` made of it.
        clean: model trained on the set without poison.
        reserve: trusted, labelled images.
        stamped: poisoned training images with their TRUE labels.
        seed: seed for the generator's weights, the images that are taken and their order.
        images: number of clean images and, apart from them, of poisoned ones, or all that there are. 500 in the published code.
        batch_size: images per step. 128 in the published code.
        query_epochs: passes over the images. 50 in the published code.
        query_lr: learning rate. 0.1 in the published code.
        alpha: weight of the divergence from the retuned model. 0.2 in the published code.
        budget: largest change of a pixel, of 255. 16 in the published code.

    Raises:
        ParameterError: a training that diverges.
    """
    device = pick_device()
    data = drawn(reserve, images, seed, "clean").followed_by(drawn(stamped, images, seed, "poisoned"))
    wanted = F.softmax(logits_of(retuned, data, what="retuned model"), 1).to(device)
    every, labels = data.tensor().to(device), torch.from_numpy(data.labels).to(device)
    generator = Generator(purified, budget=budget / 255, seed=seed).to(device)
    attacked, judge = frozen(purified, device), frozen(clean, device)
    recipe = Recipe(lr=query_lr, momentum=MOMENTUM, weight_decay=0.0, schedule="constant")
    optimizer, order = Optimizer(recipe, generator.parameters()), torch_rng(seed, "reactivation/order")
    for _ in progress(range(query_epochs), what="reactivation", unit="epoch", total=query_epochs):
        for rows in torch.randperm(len(data), generator=order).split(batch_size):
            index = rows.to(device)
            with autocast(device):
                changed = generator(to_float(every[index], device))
                answers = attacked(changed).float(), judge(changed).float()
            optimizer.zero_grad()
            query_loss(*answers, wanted[index], labels[index], alpha).backward()
            optimizer.step(Rate(query_lr, MOMENTUM))
    if bad := not_finite(generator):
        raise ParameterError(
            f"query_lr: {query_lr} given, with which the generator diverged: {bad[0]} is not finite; allowed: a lower one"
        )
    return generator.eval().requires_grad_(False)


def drawn(data: ImageSet, count: int, seed: int, purpose: str) -> ImageSet:
    """`count` images drawn from a set, or all where there are no more."""
    order = torch.randperm(len(data), generator=torch_rng(seed, f"reactivation/{purpose}")).numpy()
    index: IntArray = np.sort(order[:count])
    return data.subset(index)


def changed_by(generator: Generator, data: ImageSet) -> ImageSet:
    """The images as the generator changes them, rounded to 8 bits, with the labels that they had."""
    device, parts = pick_device(), []
    for _, images in batches(data, BATCH, device=device, what="changed images"):
        with torch.inference_mode():
            parts.append(generator(images).mul(255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy())
    return ImageSet(np.concatenate(parts), data.labels, data.classes)
