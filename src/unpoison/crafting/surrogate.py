"""Networks that the attacker trains on the clean data, and projected gradient descent (PGD) on their inputs."""

from __future__ import annotations

import sys
from copy import deepcopy
from dataclasses import asdict
from importlib.metadata import version
from pathlib import Path
from types import ModuleType
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .. import models
from ..compute import device as device_
from ..compute import inference
from ..compute.device import pick_device
from ..compute.inference import frozen
from ..core import seeding
from ..core.files import sha256_file
from ..core.seeding import derive, torch_rng
from ..models import Classifier, classifier
from ..training import augment, loop, optimizer, recipe
from .context import Scene

TRAINING = (augment, device_, inference, loop, optimizer, recipe)


def clean_network(scene: Scene) -> Classifier:
    """A network trained on the clean training set by the scene's recipe, on the CPU, in evaluation mode; kept."""
    return _network(scene, "clean_network", clean_settings(scene), None)


def adversarial_network(scene: Scene, epsilon: float, step: float, steps: int) -> Classifier:
    """The same, trained on PGD examples (Madry et al. 2018, section 2.1) that start at random within the bound.

    The examples are made with the network in evaluation mode, so that its batch statistics see only the final ones. It
    takes `steps` + 1 times as long as a clean network.

    Args:
        scene: data, network and recipe.
        epsilon, step: L∞ bound and step, of images in [0, 1].
        steps: per batch.
    """
    settings = adversarial_settings(scene, epsilon, step, steps)
    return _network(scene, "adversarial_network", settings, _madry(scene, epsilon, step, steps))


def clean_settings(scene: Scene) -> dict[str, Any]:
    """All that determines `clean_network` but its code, for `determined_by` of what stands on it."""
    weights = scene.network.get("pretrained")
    return {
        "data": scene.train.digest,
        "seed": scene.seed,
        "network": scene.network,
        "weights": sha256_file(Path(weights)) if isinstance(weights, str) else "",
        "recipe": asdict(scene.recipe),
        "libraries": {name: version(name) for name in ("torch", "torchvision", "timm")},
    }


def adversarial_settings(scene: Scene, epsilon: float, step: float, steps: int) -> dict[str, Any]:
    """All that determines `adversarial_network`, as `clean_settings`."""
    return {**clean_settings(scene), "adversarial": {"epsilon": epsilon, "step": step, "steps": steps}}


def code(scene: Scene) -> list[ModuleType]:
    """The modules whose source determines both networks, for `code` of what stands on them."""
    own = models.NETWORKS.get(scene.network["name"])
    architecture = [sys.modules[own.__module__]] if own is not None else []
    return [sys.modules[__name__], seeding, models, classifier, *architecture, *TRAINING]


def frozen_features(model: Classifier, device: torch.device) -> nn.Module:
    """As `training.inference.frozen`, from images to the penultimate features."""
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

    The model's weights get no gradients; its mode is left as it is.

    Args:
        model: images to logits.
        images: float [n, c, h, w] in [0, 1]; left as they are.
        labels: int64 [n], classes to get away from.
        epsilon, step: bound and step, of images in [0, 1].
        steps: how many.
        start: the first perturbation, as `images`; None: zero.
        targeted: int64 [n], classes to approach instead.

    Returns:
        As `images`.
    """
    low, high = (images - epsilon).clamp(min=0), (images + epsilon).clamp(max=1)
    found = images.detach() if start is None else (images + start).clamp(low, high)
    goal, direction = (labels, step) if targeted is None else (targeted, -step)
    for _ in range(steps):
        found.requires_grad_()
        # A sum: no image's gradient depends on how many there are.
        loss = F.cross_entropy(model(found).float(), goal, reduction="sum")
        (gradient,) = torch.autograd.grad(loss, found)
        found = (found.detach() + direction * gradient.sign()).clamp(low, high)
    return found.detach()


def _madry(scene: Scene, epsilon: float, step: float, steps: int) -> loop.Loss:
    generator = torch_rng(scene.seed, "surrogate/start")

    def examples(model: Classifier, images: Tensor, labels: Tensor) -> Tensor:
        start = ((torch.rand(images.shape, generator=generator) * 2 - 1) * epsilon).to(images)
        model.eval()
        found = pgd(model, images, labels, epsilon=epsilon, step=step, steps=steps, start=start)
        model.train()
        return found

    # Compilation, which is for GPUs, cannot follow a gradient that is taken within the loss.
    uncompiled = torch.compiler.disable(examples) if pick_device().type == "cuda" else examples

    def loss(model: Classifier, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
        found = uncompiled(model, images, labels)
        return loop.cross_entropy(model, found, labels, label_smoothing=scene.recipe.label_smoothing)

    return loss


def _network(scene: Scene, kind: str, settings: dict[str, Any], loss: loop.Loss | None) -> Classifier:
    initial = derive(scene.seed, "surrogate/initial")
    about: dict[str, Any] = {"num_classes": len(scene.train.classes), "channels": scene.train.channels, **scene.network}
    model = models.build(**about, image_size=scene.train.image_size, seed=initial)

    def train() -> dict[str, Any]:
        history = loop.fit(model, scene.train, scene.recipe, seed=scene.seed, what=kind.replace("_", " "), loss=loss)
        # Noise from a network that has learnt nothing is useless, and nothing else would show it.
        print(
            f"{kind}: {history.epochs[-1]['accuracy']:.0%} of what it was trained on right in its last epoch",
            flush=True,
        )
        return {name: values.cpu().numpy() for name, values in model.state_dict().items()}

    state = scene.store.arrays(kind, settings, code(scene), train)
    model.cpu().load_state_dict({name: torch.from_numpy(values) for name, values in state.items()})
    return model.eval()
