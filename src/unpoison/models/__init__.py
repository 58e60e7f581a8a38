"""Networks by name, and checkpoints.

A plain name is a network of this package, for small images and at any width; `torchvision:NAME` and `timm:NAME` are those
libraries' own. They are imported only when one of theirs is asked for: the import alone takes longer than a small model.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import nn

from ..core.errors import ParameterError, UserError
from ..core.hyperparameters import check, one_of
from ..core.weights import WithoutMemory, shapes_of
from ..data.imageset import ImageSet
from .checkpoint import DESCRIPTION, ModelManifest, check_weights, digest_of, open_weights, read_about, save
from .classifier import AUXILIARY_WEIGHT, Backbone, Classifier
from .networks import NETWORKS, TEXT_NETWORKS, VOCABULARY_NETWORKS
from .pretrained import LibraryOptions, check_path

__all__ = [
    "AUXILIARY_WEIGHT",
    "DESCRIPTION",
    "NETWORKS",
    "TEXT_NETWORKS",
    "VOCABULARY_NETWORKS",
    "Classifier",
    "build",
    "digest_of",
    "fresh_copy",
    "load",
    "network_arguments",
    "read_about",
    "save",
]

PREFIXES = ("torchvision", "timm")
# Pixels of an image that a network from elsewhere is tried out with.
_MOST_TRIED = 1 << 16
# What torch and the two libraries raise on an image size or a layer that does not fit.
MISFITS = (ArithmeticError, AssertionError, AttributeError, LookupError, RuntimeError, TypeError, ValueError)


def build(
    name: str,
    *,
    num_classes: int,
    image_size: int | Sequence[int],
    channels: int = 3,
    mean: Sequence[float] | None = None,
    std: Sequence[float] | None = None,
    seed: int = 0,
    vocabulary: Sequence[str] | None = None,
    **arguments: Any,
) -> Classifier:
    """A freshly initialised network, in training mode.

    Args:
        name: a key of `NETWORKS`, `torchvision:NAME` or `timm:NAME`.
        num_classes: number of logits.
        image_size: height and width in pixels; one number for square images.
        channels: channels of the images.
        mean: mean of each channel of images in [0, 1], subtracted inside the network. By default that of the pretrained
            weights (their average for images of one channel), 0.5 without such weights.
        std: standard deviation that they are then divided by, likewise, 0.25 without pretrained weights.
        seed: seed for the initial weights; the global random state is left as it was.
        vocabulary: words by their ids, for one of `VOCABULARY_NETWORKS`; others take no notice.
        arguments: the network's own (`width`, `stem`, `final_norm`, `growth`; `pretrained` with a prefix).

    Raises:
        UserError: unknown name or argument, an image size the network cannot take, pretrained weights that are not there
            or not the network's.
    """
    wanted = _Wanted(
        name,
        network_arguments(name, arguments),
        num_classes,
        (image_size, image_size) if isinstance(image_size, int) else (image_size[0], image_size[1]),
        channels,
        mean,
        std,
        vocabulary=vocabulary,
    )
    return wanted.network(seed, tried_out=True)


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
    """The same network with new, random initial weights, even where the original started from pretrained ones, or stamps."""
    copy = _wanted({**model.description, "stamp": None}).network(seed, tried_out=True)
    own = model.backbone.state_dict()
    copy.backbone.load_state_dict({name: own[name] for name in model.backbone.given}, strict=False)
    return copy


def load(folder: Path, data: ImageSet | None = None) -> Classifier:
    """The network of a checkpoint folder, on the CPU, in evaluation mode.

    The folder may be from anywhere: nothing outside it is opened or asked for, and weights are compared with the network
    by their shapes before there is memory for either.

    Args:
        folder: folder of the checkpoint.
        data: data that the model is to be used on; None: any.

    Raises:
        UserError: a missing or changed file, an unknown network, weights of another architecture or not finite, a model
            for other images or classes than those of `data`.
    """
    folder = Path(folder)
    about = read_about(folder)
    _check_fits(folder / DESCRIPTION, about, data)
    weights = open_weights(folder, about)
    with _described_in(folder / DESCRIPTION):
        wanted = _wanted(about.network.model_dump())
        outline = wanted.outline()
    if outline is not None:
        check_weights(weights, shapes_of(outline.state_dict()), about)
    with _described_in(folder / DESCRIPTION):
        # The trial is for a size that the network cannot take; the memory of a large one would be the description's choice.
        model = wanted.network(0, tried_out=wanted.size[0] * wanted.size[1] <= _MOST_TRIED)
    check_weights(weights, shapes_of(model.state_dict()), about)
    model.load_state_dict(weights.read())
    return model.eval()


@contextmanager
def _described_in(path: Path) -> Iterator[None]:
    """Put the description's file in front of what is wrong with the network that it describes."""
    try:
        yield
    except UserError as error:
        raise UserError(f"{path}: network: {error}") from None


def _check_fits(path: Path, about: ModelManifest, data: ImageSet | None) -> None:
    """Raises UserError for a model of other images or classes than those of `data`."""
    if data is None:
        return
    network, shape = about.network, (*data.image_size, data.channels)
    if (*network.image_size, network.channels) != shape:
        height, width = network.image_size
        raise UserError(
            f"{path}: a model for images of {height}x{width} px, {network.channels} channels, the data have "
            f"{shape[0]}x{shape[1]} px, {shape[2]} channels"
        )
    if tuple(about.classes) != data.classes:
        theirs, ours = (", ".join(map(repr, names))[:200] for names in (about.classes, data.classes))
        raise UserError(f"{path}: a model for the classes {theirs}, the data have {ours}")


@dataclass(frozen=True)
class _Wanted:
    """A network that is to be built: the arguments of `build`, checked."""

    name: str
    arguments: dict[str, Any]
    num_classes: int
    size: tuple[int, int]
    channels: int
    mean: Sequence[float] | None
    std: Sequence[float] | None
    stamp: dict[str, Any] | None = None
    vocabulary: Sequence[str] | None = None

    def network(self, seed: int, *, tried_out: bool) -> Classifier:
        """The network with initial weights, in training mode."""
        try:
            # The libraries' constructors draw from the global random state: it is set for them and put back.
            with torch.random.fork_rng(devices=[]):
                torch.manual_seed(seed)
                model = self._assembled()
            if tried_out:
                _try_out(model)
        except UserError:
            raise
        except MISFITS as error:
            raise self._misfit(error) from error
        return model

    def outline(self) -> Classifier | None:
        """The network without memory for its weights; None where a library cannot do that."""
        try:
            with torch.random.fork_rng(devices=[]), WithoutMemory():
                model = self._assembled()
        except UserError:
            raise
        except MISFITS as error:
            # Of the libraries' thousands of networks some may look at their first weights.
            if ":" in self.name:
                return None
            raise self._misfit(error) from error
        return model

    def _assembled(self) -> Classifier:
        backbone, head, own = self._parts()
        # The description rebuilds the network without any weights, so it needs no download.
        rebuilt_by = {key: value for key, value in self.arguments.items() if key != "pretrained"}
        description = {
            "name": self.name,
            "arguments": rebuilt_by if backbone.rebuilt_by is None else backbone.rebuilt_by,
            "num_classes": self.num_classes,
            "image_size": list(self.size),
            "channels": self.channels,
            "mean": _per_channel("mean", self.mean, own and own[0], 0.5, self.channels),
            "std": _per_channel("std", self.std, own and own[1], 0.25, self.channels),
        }
        if self.stamp is not None:
            description["stamp"] = self.stamp
        return Classifier(backbone, head, description)

    def _parts(self) -> tuple[Backbone, nn.Linear, Any]:
        """Backbone, head, and the normalisation that pretrained weights were trained with, None without them."""
        prefix, colon, short = self.name.partition(":")
        if colon:
            backbone, head, own = _library(prefix).build(
                short, num_classes=self.num_classes, image_size=self.size, channels=self.channels, **self.arguments
            )
            return backbone, head, own
        words = (self.vocabulary,) if self.name in VOCABULARY_NETWORKS else ()
        backbone, features = NETWORKS[self.name](self.channels, *words, **self.arguments)
        return backbone, nn.Linear(features, self.num_classes), backbone.normalisation

    def _misfit(self, error: Exception) -> UserError:
        height, width = self.size
        reason = f"{type(error).__name__}: {error}"
        return UserError(
            f"{self.name}: cannot be built for images of {height}x{width} px, {self.channels} channels: {reason[:300]}"
        )


def _wanted(description: Mapping[str, Any]) -> _Wanted:
    """What a description stands for. Raises ParameterError for a name or an argument that there is not."""
    height, width = description["image_size"]
    return _Wanted(
        description["name"],
        network_arguments(description["name"], description["arguments"]),
        description["num_classes"],
        (height, width),
        description["channels"],
        description["mean"],
        description["std"],
        description.get("stamp"),
    )


def _library(prefix: str) -> Any:
    """The module that builds a library's networks; its import imports the library."""
    if prefix == "timm":
        from . import timm_networks

        return timm_networks
    from . import torchvision_networks

    return torchvision_networks


def _per_channel(
    key: str, given: Sequence[float] | None, own: Sequence[float] | None, default: float, channels: int
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
