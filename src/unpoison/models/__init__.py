"""Networks by name, and checkpoints.

A plain name is a network of this package, for small images and at any width; `torchvision:NAME` and `timm:NAME` are those
libraries' own. They are imported only when one of theirs is asked for: the import alone takes longer than a small model.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import nn

from ..core.errors import ParameterError, UserError
from ..core.hyperparameters import check, one_of
from .checkpoint import DESCRIPTION, digest_of, read_checkpoint, save
from .classifier import AUXILIARY_WEIGHT, Backbone, Classifier
from .densenet import densenet121
from .preactresnet import preactresnet18
from .pretrained import LibraryOptions, check_path
from .resnet import resnet18, resnet34, resnet50
from .vgg import vgg19_bn

__all__ = [
    "AUXILIARY_WEIGHT",
    "DESCRIPTION",
    "NETWORKS",
    "Classifier",
    "build",
    "digest_of",
    "fresh_copy",
    "load",
    "network_arguments",
    "save",
]

NETWORKS: dict[str, Callable[..., tuple[Backbone, int]]] = {
    "resnet18": resnet18,
    "resnet34": resnet34,
    "resnet50": resnet50,
    "preactresnet18": preactresnet18,
    "vgg19_bn": vgg19_bn,
    "densenet121": densenet121,
}
PREFIXES = ("torchvision", "timm")
# What torch and the two libraries raise on an image size or a layer that does not fit.
MISFITS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


def build(
    name: str,
    *,
    num_classes: int,
    image_size: tuple[int, int],
    channels: int = 3,
    mean: tuple[float, ...] | None = None,
    std: tuple[float, ...] | None = None,
    seed: int = 0,
    **arguments: Any,
) -> Classifier:
    """A freshly initialised network, in training mode.

    Args:
        name: a key of `NETWORKS`, `torchvision:NAME` or `timm:NAME`.
        num_classes: number of logits.
        image_size: height and width in pixels.
        channels: channels of the images.
        mean: mean of each channel of images in [0, 1], subtracted inside the network. By default that of the pretrained
            weights (their average for images of one channel), 0.5 without such weights.
        std: standard deviation that they are then divided by, likewise, 0.25 without pretrained weights.
        seed: seed for the initial weights; the global random state is left as it was.
        arguments: the network's own (`width`, `stem`, `final_norm`, `growth`; `pretrained` with a prefix).

    Raises:
        UserError: unknown name or argument, an image size the network cannot take, pretrained weights that are not there
            or not the network's.
    """
    arguments = network_arguments(name, arguments)
    height, width = image_size
    try:
        # The libraries' constructors draw from the global random state: it is set for them and put back.
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            backbone, head, own = _parts(name, arguments, num_classes, (height, width), channels)
        # The description rebuilds the network without any weights, so it needs no download.
        description = {
            "name": name,
            "arguments": {key: value for key, value in arguments.items() if key != "pretrained"},
            "num_classes": num_classes,
            "image_size": [height, width],
            "channels": channels,
            "mean": _per_channel("mean", mean, own and own[0], 0.5, channels),
            "std": _per_channel("std", std, own and own[1], 0.25, channels),
        }
        model = Classifier(backbone, head, description)
        _try_out(model)
    except UserError:
        raise
    except MISFITS as error:
        reason = f"{type(error).__name__}: {error}"
        raise UserError(
            f"{name}: cannot be built for images of {height}x{width} px, {channels} channels: {reason[:300]}"
        ) from error
    return model


def network_arguments(name: Any, arguments: Mapping[str, Any]) -> dict[str, Any]:
    """Check a network's name and arguments without building it.

    Args:
        name: a name for `build`; networks of a library are looked up in the library.
        arguments: the network's own.

    Returns:
        The arguments, without the defaults of those that are absent.

    Raises:
        ParameterError: names the argument, what was given and what is allowed.
    """
    prefix, colon, short = name.partition(":") if isinstance(name, str) else ("", "", "")
    if colon and prefix in PREFIXES:
        _library(prefix).check_name(short)
        checked = check(arguments, LibraryOptions)
        check_path(checked.get("pretrained"))
        return checked
    # The prefixes are among the options for the message alone.
    options = {**NETWORKS, **{f"{library}:NAME": None for library in PREFIXES}}
    return check(arguments, one_of(name, options, key="name"))


def fresh_copy(model: Classifier, *, seed: int) -> Classifier:
    """The same network with new, random initial weights, even where the original started from pretrained ones."""
    return _rebuild(model.description, seed)


def load(folder: Any) -> Classifier:
    """The network of a checkpoint folder, on the CPU, in evaluation mode.

    Raises:
        UserError: a missing or changed file, an unknown network, or weights of another architecture.
    """
    description, assign = read_checkpoint(folder)
    model = _rebuild(description, seed=0)
    assign(model)
    return model.eval()


def _rebuild(description: dict[str, Any], seed: int) -> Classifier:
    """A network from its description, with new weights."""
    # JSON knows lists only, where `build` takes tuples.
    given: dict[str, Any] = {
        key: tuple(value) if isinstance(value, list) else value for key, value in description.items()
    }
    arguments: Any = given.pop("arguments")
    return build(**given, seed=seed, **arguments)


def _library(prefix: str) -> Any:
    """The module that builds a library's networks; its import imports the library."""
    if prefix == "timm":
        from . import timm_networks

        return timm_networks
    from . import torchvision_networks

    return torchvision_networks


def _parts(
    name: str, arguments: dict[str, Any], num_classes: int, image_size: tuple[int, int], channels: int
) -> tuple[Backbone, nn.Linear, Any]:
    """Backbone, head, and the normalisation that pretrained weights were trained with, None without them."""
    prefix, colon, short = name.partition(":")
    if colon:
        backbone, head, own = _library(prefix).build(
            short, num_classes=num_classes, image_size=image_size, channels=channels, **arguments
        )
        return backbone, head, own
    backbone, features = NETWORKS[name](channels, **arguments)
    return backbone, nn.Linear(features, num_classes), None


def _per_channel(
    key: str, given: tuple[float, ...] | None, own: tuple[float, ...] | None, default: float, channels: int
) -> list[float]:
    """A value per channel: the ones given, or else the pretrained weights' own, or else the default."""
    values = given if given is not None else own if own is not None else (default,) * channels
    # Grey images are repeated over a colour network's three channels; one value does for all three.
    if given is None and channels == 1:
        values = (sum(values) / len(values),)
    if len(values) != channels:
        raise ParameterError(f"{key}: {len(values)} values given, allowed: one for each of {channels} channels")
    return [float(value) for value in values]


@torch.no_grad()
def _try_out(model: Classifier) -> None:
    """One black image through every public method, so that a size that does not fit is refused here and not in training."""
    about = model.description
    # One image, in evaluation mode: in training mode batch norm refuses a batch of one and would take note of it.
    images = torch.zeros(1, about["channels"], *about["image_size"])
    model.eval()
    shapes = [tuple(out.shape) for out in (model.feature_map(images), model.features(images), model(images))]
    model.train()
    if len(shapes[0]) != 4 or shapes[1:] != [(1, model.head.in_features), (1, about["num_classes"])]:
        raise UserError(
            f"{about['name']}: feature map, features and logits of one image are {shapes}, allowed: (1, d', h', w'), "
            f"(1, {model.head.in_features}), (1, {about['num_classes']})"
        )
