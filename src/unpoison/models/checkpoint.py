"""Checkpoints: `model.safetensors` (weights, no metadata) and `model.json` (how to rebuild and where it comes from)."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

from annotated_types import Ge, Le, Len, MaxLen

from ..core.errors import UserError
from ..core.files import new_folder
from ..core.hyperparameters import Count
from ..core.manifest import Described, Manifest, Names, Size, check_file, read_manifest, write_manifest
from ..core.weights import Shapes, Weights, differences, prefix_of, said_of, save_weights
from .classifier import Classifier

FORMAT, WEIGHTS, DESCRIPTION = "unpoison-model-1", "model.safetensors", "model.json"


class StampManifest(Described):
    """The trigger that a network puts on every image itself (`Classifier.stamp_inputs`)."""

    size: Count
    value: Annotated[float, Ge(-1e6), Le(1e6)]


class NetworkManifest(Described):
    """The description that rebuilds a network (`Classifier.description`), within what float32 can divide by."""

    name: Annotated[str, MaxLen(200)]
    arguments: dict[str, Any]
    num_classes: Count
    image_size: Annotated[list[Annotated[int, Ge(1), Le(1 << 14)]], Len(2, 2)]
    channels: Size
    mean: Annotated[list[Annotated[float, Ge(-1e6), Le(1e6)]], Len(1)]
    std: Annotated[list[Annotated[float, Ge(1e-6), Le(1e6)]], Len(1)]
    stamp: StampManifest | None = None


class ModelManifest(Manifest):
    """What `model.json` holds: the network, the class names, and what made it (stage, seed, recipe, machine)."""

    network: NetworkManifest
    classes: Names
    made_by: dict[str, Any]


def save(
    model: Classifier,
    folder: Path,
    *,
    classes: tuple[str, ...],
    made_by: dict[str, Any],
    made_from: dict[str, str] | None = None,
) -> None:
    """Write a checkpoint folder.

    Args:
        model: model to write; it stays where it is.
        folder: folder that is made or replaced.
        classes: class names.
        made_by: JSON values for `model.json`, as they are: stage, seed, recipe, machine.
        made_from: digest by name of each artefact it was made from.
    """
    with new_folder(folder) as staging:
        save_weights(model.state_dict(), staging / WEIGHTS)
        about = {"format": FORMAT, "network": model.description, "classes": list(classes)}
        write_manifest(staging, DESCRIPTION, {**about, "made_by": made_by, "made_from": made_from or {}})


def digest_of(folder: Path) -> str:
    """SHA-256 of a checkpoint's weights, as its description records it."""
    return read_about(folder).files.get(WEIGHTS, "")


def read_about(folder: Path) -> ModelManifest:
    """The description of a checkpoint.

    Raises:
        UserError: it is missing, or describes no network that could be rebuilt without anything from elsewhere.
    """
    about, path = read_manifest(folder, DESCRIPTION, FORMAT, ModelManifest), folder / DESCRIPTION
    # Who trained a model may load weights by name or from a file; who is given one may not be made to.
    if "pretrained" in about.network.arguments:
        raise UserError(f"{path}: network.arguments.pretrained: allowed: none, the weights lie beside the description")
    if len(about.classes) != about.network.num_classes:
        raise UserError(
            f"{path}: {len(about.classes)} classes for {about.network.num_classes} logits, allowed: as many"
        )
    return about


def open_weights(folder: Path, about: ModelManifest) -> Weights:
    """The weights of a checkpoint, not read yet. Raises UserError for a missing, changed or unreadable file."""
    return Weights(check_file(folder, about, WEIGHTS))


def check_weights(weights: Weights, expected: Shapes, about: ModelManifest) -> None:
    """Raises UserError for weights of another architecture than the one described."""
    # Compared here, name by name: torch's own message lists every tensor.
    wrong = differences(weights.shapes, expected)
    if not wrong:
        return
    network, first = about.network, wrong[0]
    if prefix := prefix_of(weights.shapes, expected):
        reason = f"every name begins with {prefix!r}, as a wrapper of the network leaves it; take that off"
    else:
        reason = f"{first} is {said_of(first, weights.shapes, 'absent')}"
    raise UserError(
        f"{weights.path}: weights of another architecture: {reason}, {network.name} {network.arguments} has "
        f"{said_of(first, expected, 'none')} ({len(wrong)} of {len(expected)} tensors differ)"
    )
