"""Networks that the attacker trains on the clean data, and projected gradient descent (PGD) on their inputs."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import models
from ..compute.device import uncompiled
from ..compute.inference import frozen
from ..core.errors import file_of
from ..core.files import sha256_file
from ..core.seeding import derive, torch_rng
from ..models import Classifier
from ..training import loop
from .context import Context


def clean_network(context: Context) -> Classifier:
    """A network trained on the clean training set by the context's recipe and kept; on the CPU, in evaluation mode."""
    return _network(context, "clean_network", clean_settings(context), None)


def adversarial_network(context: Context, epsilon: float, step: float, steps: int) -> Classifier:
    """The same, trained on PGD examples (Madry et al. 2018, section 2.1) that start at random within the bound.

    Examples are made with the network in evaluation mode, so that its batch statistics see only the final ones. Training
    takes `steps` + 1 times as long as on clean images.

    Args:
        context: data, network and recipe of the attacker.
        epsilon: L∞ bound, for images in [0, 1].
        step: length of a step, for images in [0, 1].
        steps: number of steps for each batch.
    """
    settings = adversarial_settings(context, epsilon, step, steps)
    return _network(context, "adversarial_network", settings, _madry(context, epsilon, step, steps))


def clean_settings(context: Context) -> dict[str, Any]:
    """Settings that determine `clean_network` besides data, seed and code, for `determined_by` of assets built on it."""
    # A file of weights counts by its content: its path stays the same when it is replaced.
    weights = context.network.get("pretrained")
    return {
        "network": context.network,
        "weights": sha256_file(Path(weights)) if isinstance(weights, str) else "",
        "recipe": asdict(context.recipe),
    }


def adversarial_settings(context: Context, epsilon: float, step: float, steps: int) -> dict[str, Any]:
    """Settings that determine `adversarial_network`, as `clean_settings`."""
    return {**clean_settings(context), "adversarial": {"epsilon": epsilon, "step": step, "steps": steps}}


def frozen_features(model: Classifier, device: torch.device) -> nn.Module:
    """As `compute.inference.frozen`, from images to the penultimate features."""
    headless = deepcopy(model)
    headless.add_module("head", nn.Identity())
    return frozen(headless, device)


def pgd(
    model: nn.Module,
    images: Tensor,
    labels: Tensor,
    *,
    epsilon: float,
    step: float,
    steps: int,
    start: Tensor | None = None,
    targeted: Tensor | None = None,
) -> Tensor:
    """Signed gradient steps that raise each image's cross entropy, projected onto an L∞ ball and onto [0, 1].

    The model's weights get no gradients; its mode is not changed.

    Args:
        model: images to logits.
        images: float [n, c, h, w] in [0, 1]; not written to.
        labels: classes to get away from, int64 [n].
        epsilon: L∞ bound, for images in [0, 1].
        step: length of a step, for images in [0, 1].
        steps: number of steps.
        start: first perturbation, as `images`; None: zero.
        targeted: classes to approach instead, int64 [n].

    Returns:
        The perturbed images, as `images`.
    """
    # Ball and range are both boxes, so their intersection is one, and a clamp is the exact projection onto it.
    low, high = (images - epsilon).clamp(min=0), (images + epsilon).clamp(max=1)
    points = images.detach() if start is None else (images + start).clamp(low, high)
    goal, direction = (labels, step) if targeted is None else (targeted, -step)
    for _ in range(steps):
        points.requires_grad_()
        # A sum: no image's gradient depends on how many there are.
        loss = F.cross_entropy(model(points).float(), goal, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, points)
        points = (points.detach() + direction * gradient.sign()).clamp(low, high)
    return points.detach()


def untrained_network(context: Context) -> Classifier:
    """A network of the context's kind as it starts."""
    initial = derive(context.seed, "surrogate/initial")
    about: dict[str, Any] = {
        "num_classes": len(context.train.classes),
        "channels": context.train.channels,
        **context.network,
    }
    return models.build(**about, image_size=context.train.image_size, seed=initial)


def _madry(context: Context, epsilon: float, step: float, steps: int) -> loop.Loss:
    """The loss of adversarial training: cross entropy on PGD examples of each batch, made anew in every step."""
    generator = torch_rng(context.seed, "surrogate/start")

    def examples(model: Classifier, images: Tensor, labels: Tensor) -> Tensor:
        # Drawn on the CPU, so that a GPU gets the same starts.
        start = ((torch.rand(images.shape, generator=generator) * 2 - 1) * epsilon).to(images)
        # In evaluation mode, or the batch statistics would follow every step of the search.
        model.eval()
        perturbed = pgd(model, images, labels, epsilon=epsilon, step=step, steps=steps, start=start)
        model.train()
        return perturbed

    # A compiled loss cannot follow a gradient that is taken within it.
    searched = uncompiled(examples)

    def loss(model: Classifier, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        perturbed = searched(model, images, labels)
        return loop.cross_entropy(model, perturbed, labels, label_smoothing=context.recipe.label_smoothing)

    return loss


def _network(context: Context, kind: str, settings: dict[str, Any], loss: loop.Loss | None) -> Classifier:
    """The network `kind` with these settings, trained with `loss` or out of the store."""
    # Built in either case: from the store come weights, and the layers they belong to are the context's.
    model = untrained_network(context)

    def train() -> dict[str, Any]:
        # Not the attack's own parameters, whose place the caller puts in front.
        with file_of("attack.surrogate.train"):
            history = loop.fit(
                model, context.train, context.recipe, seed=context.seed, what=kind.replace("_", " "), loss=loss
            )
        # Noise made on a network that has learnt nothing is useless, and nothing else would show it.
        print(
            f"{kind}: {history.epochs[-1]['accuracy']:.0%} of what it was trained on right in its last epoch",
            flush=True,
        )
        return {name: values.cpu().numpy() for name, values in model.state_dict().items()}

    state = context.store.arrays(kind, context.determined_by(__name__, **settings), train)
    model.cpu().load_state_dict({name: torch.from_numpy(values) for name, values in state.items()})
    return model.eval()
