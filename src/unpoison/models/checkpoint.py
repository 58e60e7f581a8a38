"""Checkpoints: `model.safetensors` (weights, no metadata) and `model.json` (how to rebuild and where it comes from)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..core.errors import UserError
from ..core.files import check_file, new_folder, read_manifest, write_manifest
from .classifier import Classifier

FORMAT, WEIGHTS, DESCRIPTION = "unpoison-model-1", "model.safetensors", "model.json"


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
    # No metadata in the safetensors file: with two keys or more its bytes would differ from run to run.
    with new_folder(folder) as staging:
        weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
        save_file(weights, staging / WEIGHTS)
        about = {"format": FORMAT, "network": model.description, "classes": list(classes)}
        write_manifest(staging, DESCRIPTION, {**about, "made_by": made_by, "made_from": made_from or {}})


def digest_of(folder: Path) -> str:
    """SHA-256 of a checkpoint's weights, as its description records it."""
    about = read_manifest(folder, DESCRIPTION, FORMAT)
    return str(about.get("files", {}).get(WEIGHTS, ""))


def read_checkpoint(folder: Path) -> tuple[dict[str, Any], Callable[[Classifier], None]]:
    """The network's description, and a function that loads the weights into a network built from it.

    Raises:
        UserError: a missing or changed file, or one that is no checkpoint; from the function, weights of another
            architecture.
    """
    folder = Path(folder)
    about = read_manifest(folder, DESCRIPTION, FORMAT)
    if not isinstance(about.get("network"), dict):
        raise UserError(
            f"{folder / DESCRIPTION}: network: {about.get('network')!r} found, allowed: a network's description"
        )
    path = check_file(folder, about, WEIGHTS)
    try:
        weights = load_file(path)
    except SafetensorError as error:
        raise UserError(f"{path}: not a readable safetensors file ({error})") from None

    def assign(model: Classifier) -> None:
        expected = {name: tuple(value.shape) for name, value in model.state_dict().items()}
        given = {name: tuple(value.shape) for name, value in weights.items()}
        # Compared here, name by name: torch's own message lists every tensor.
        wrong = sorted(name for name in expected.keys() | given.keys() if expected.get(name) != given.get(name))
        if wrong:
            network = about["network"]
            raise UserError(
                f"{path}: weights of another architecture: {wrong[0]} is {given.get(wrong[0], 'absent')}, "
                f"{network['name']} {network['arguments']} has {expected.get(wrong[0], 'none')} "
                f"({len(wrong)} of {len(expected)} tensors differ)"
            )
        model.load_state_dict(weights)

    return dict(about["network"]), assign
