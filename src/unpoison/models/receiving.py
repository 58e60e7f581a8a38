"""A checkpoint from elsewhere as a model folder of this project: converted once, recognised, with an explicit normalisation."""

from __future__ import annotations

import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from safetensors import safe_open

from ..core.errors import UserError, file_of
from ..core.files import check_regular, sha256_file
from ..core.weights import Weights, save_weights, shapes_of
from . import DESCRIPTION, Classifier, build, load, network_arguments, read_about, save
from .conversion import convert
from .networks import NETWORKS
from .recognition import Recognised, fits, recognise

WEIGHTS, PICKLED = (".safetensors",), (".pt", ".pth")


@dataclass(frozen=True)
class Wanted:
    """What a user says of his checkpoint.

    Attributes:
        classes: names of the classes, in the order of the data's labels.
        image_size: height and width in pixels of the images it is used on; None: those of a model folder.
        network: name and arguments (`resnet18 stem=conv3 width=64`, `torchvision:resnet18`); "": to be recognised.
        mean, std: of each channel of images in [0, 1]; None: those of the network's published weights where a library has
            them, else 0.5 and 0.25.
        order: names of the classes in the order of the head's outputs; (): that of `classes`.
        channels: channels of the images.
    """

    classes: tuple[str, ...]
    image_size: tuple[int, int] | None
    network: str = ""
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    order: tuple[str, ...] = ()
    channels: int = 3


def receive(path: Path, wanted: Wanted, folder: Path) -> Path:
    """Make a model folder of a checkpoint: weights in safetensors, a pickle of torch, or a folder of this project.

    Args:
        path: the checkpoint.
        wanted: what is known of it.
        folder: folder of such folders; converted pickles are kept in it as well.

    Returns:
        The folder of the model in `folder`, named by the digest of its description.

    Raises:
        UserError: what is no checkpoint, or does not fit its network or the classes.
    """
    if path.is_dir():
        model, about = _of_folder(path, wanted)
    elif path.suffix in (*WEIGHTS, *PICKLED):
        check_regular(path)
        weights = path if path.suffix in WEIGHTS else _converted(path, folder)
        model, about = _of_weights(weights, wanted, path)
    else:
        raise UserError(
            f"MODEL: {str(path)!r} given, allowed: a file that ends in {', '.join((*WEIGHTS, *PICKLED))}, or the folder of a "
            f"model with its {DESCRIPTION}"
        )
    new = folder / "new"
    save(_in_order(model, wanted, path), new, classes=wanted.classes, made_by={"received": about})
    place = folder / sha256_file(new / DESCRIPTION)[:16]
    # The same model where it was received before, unless somebody changed it since: the new one is right in any case.
    shutil.rmtree(place, ignore_errors=True)
    new.rename(place)
    return place


def _converted(path: Path, folder: Path) -> Path:
    """The tensors of a pickle, read in a process of its own; a file that was converted before is not read again."""
    digest = sha256_file(path)
    target = folder / f"{digest}.safetensors"
    if target.exists():
        with safe_open(str(Weights(target).path), framework="pt") as archive:
            if (archive.metadata() or {}).get("converted_from_sha256") == digest:
                return target
        target.unlink()
    convert(path, target)
    return target


def _of_folder(path: Path, wanted: Wanted) -> tuple[Classifier, dict[str, Any]]:
    """The model in a folder of this project, and where it is from."""
    about = read_about(path)
    for key, given in (
        ("NETWORK", wanted.network),
        ("MEAN", wanted.mean),
        ("STD", wanted.std),
        ("CLASSES", wanted.order),
    ):
        if given:
            raise UserError(f"{key}: {given!r} given, allowed with a model folder, whose {DESCRIPTION} says it: none")
    size = (about.network.image_size[0], about.network.image_size[1])
    if wanted.image_size not in (None, size):
        raise UserError(
            f"IMAGE_SIZE: {wanted.image_size} given, allowed with {path}: {size}, as its {DESCRIPTION} says"
        )
    if sorted(about.classes) != sorted(wanted.classes):
        raise UserError(_other_classes(path, about.classes, wanted.classes))
    model = load(path)
    # A folder says the order of its classes, which need not be that of the data.
    _permute(model, [about.classes.index(name) for name in wanted.classes])
    return model, {
        "file": path.name,
        "sha256": sha256_file(path / DESCRIPTION),
        "network": "described",
        "normalisation": "described",
    }


def _of_weights(weights: Path, wanted: Wanted, path: Path) -> tuple[Classifier, dict[str, Any]]:
    """The network of a state dict with its weights, and where it is from."""
    if wanted.image_size is None:
        raise UserError("IMAGE_SIZE: none given, allowed with a state dict: pixels per side")
    source = Weights(weights)
    if wanted.network:
        found = _named(wanted.network)
    else:
        found = recognise(source.shapes, wanted.image_size, wanted.channels, str(path))
        if found.classes != len(wanted.classes):
            raise UserError(
                f"{path}: a head for {found.classes} classes ({found.said}), DATA has {len(wanted.classes)} classes; allowed: "
                "a folder for each class of the head"
            )
    tensors = {name.removeprefix(found.prefix): value for name, value in source.read().items()}
    model = _built(found, tensors, wanted, path)
    given = [name for name in ("mean", "std") if getattr(wanted, name) is not None]
    return model, {
        "file": path.name,
        "sha256": sha256_file(path),
        "network": "given" if wanted.network else "recognised",
        "normalisation": " and ".join(given) + " given" if given else "assumed",
    }


def _named(text: str) -> Recognised:
    """A network by the name and arguments that a user gives. Its head is looked at when it is built."""
    name, *parts = text.split() or [""]
    arguments: dict[str, Any] = {}
    for part in parts:
        key, equals, value = part.partition("=")
        if not equals:
            raise UserError(f"NETWORK: {part!r} given, allowed: a name and arguments as KEY=VALUE")
        arguments[key] = {"true": True, "false": False}.get(value.lower(), int(value) if value.isdecimal() else value)
    if "pretrained" in arguments:
        raise UserError("NETWORK: pretrained given, allowed: the weights of MODEL alone")
    with file_of("NETWORK"):
        return Recognised(name, network_arguments(name, arguments), 0)


def _built(found: Recognised, tensors: Mapping[str, torch.Tensor], wanted: Wanted, path: Path) -> Classifier:
    """The network with the tensors in it, in evaluation mode. Raises UserError where they are another network's."""
    about: dict[str, Any] = {
        "num_classes": len(wanted.classes),
        "image_size": wanted.image_size,
        "channels": wanted.channels,
        "mean": wanted.mean,
        "std": wanted.std,
        **found.arguments,
    }
    if found.name in NETWORKS:
        model = build(found.name, **about)
        own = model.state_dict()
        if not fits(shapes_of(tensors), shapes_of(own)):
            wrong = next(name for name in {**own, **tensors} if _shape(own, name) != _shape(tensors, name))
            raise UserError(
                f"{path}: not the weights of {found.said} for {len(wanted.classes)} classes: {wrong} is "
                f"{_shape(tensors, wrong)}, the network has {_shape(own, wrong)}"
            )
        model.load_state_dict({**own, **tensors})
        return model.eval()
    # A library's own names: its network takes them before it is taken apart.
    with TemporaryDirectory() as empty:
        file = Path(empty, "weights.safetensors")
        save_weights(tensors, file)
        try:
            model = build(found.name, pretrained=str(file), **about).eval()
        except UserError as error:
            raise UserError(f"{path}: {str(error).removeprefix(f'{file}: ')}") from None
    # Weights of a head for other classes would have been left out in silence.
    head = model.head.weight
    if not any(value.shape == head.shape and torch.equal(value.float(), head) for value in tensors.values()):
        raise UserError(
            f"{path}: no head for {len(wanted.classes)} classes, which DATA has; allowed: a folder for each class of the head"
        )
    return model


def _shape(tensors: Mapping[str, torch.Tensor], name: str) -> str:
    return str(tuple(tensors[name].shape)) if name in tensors else "absent"


def _in_order(model: Classifier, wanted: Wanted, path: Path) -> Classifier:
    """The model with its outputs in the order of the data's labels."""
    if not wanted.order:
        return model
    if sorted(wanted.order) != sorted(wanted.classes):
        raise UserError(_other_classes(Path("CLASSES"), wanted.order, wanted.classes))
    _permute(model, [wanted.order.index(name) for name in wanted.classes])
    return model


def _permute(model: Classifier, places: Sequence[int]) -> None:
    """Put the head's rows in another order: the new row i is the old row `places[i]`."""
    with torch.no_grad():
        for values in (model.head.weight, model.head.bias):
            if values is not None:
                values.copy_(values[list(places)].clone())


def _other_classes(where: Path, theirs: Sequence[str], ours: Sequence[str]) -> str:
    said = (", ".join(map(repr, names))[:200] for names in (theirs, ours))
    return (
        f"{where}: {len(theirs)} classes ({next(said)}), DATA has {len(ours)} ({next(said)}); allowed: the same names"
    )
