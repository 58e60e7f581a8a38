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
        classes: class names.
        made_by: JSON values, to `model.json` as they are: stage, seed, recipe, machine.
        made_from: name to digest of the artefacts it was made from.
    """
    with new_folder(folder) as staging:
        weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
        save_file(weights, staging / WEIGHTS)
        about = {"format": FORMAT, "network": model.description, "classes": list(classes)}
        write_manifest(staging, DESCRIPTION, {**about, "made_by": made_by, "made_from": made_from or {}})


def digest_of(folder: Path) -> str:
    """SHA-256 of a checkpoint's weights, as its description says."""
    about = read_manifest(folder, DESCRIPTION, FORMAT)
    return str(about.get("files", {}).get(WEIGHTS, ""))


def read_checkpoint(folder: Path) -> tuple[dict[str, Any], Callable[[Classifier], None]]:
    """The network's description, and a function that loads the weights into a network built from it."""
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
        found = {name: tuple(value.shape) for name, value in weights.items()}
        wrong = sorted(name for name in expected.keys() | found.keys() if expected.get(name) != found.get(name))
        if wrong:
            network = about["network"]
            raise UserError(
                f"{path}: weights of another architecture: {wrong[0]} is {found.get(wrong[0], 'absent')}, "
                f"{network['name']} {network['arguments']} has {expected.get(wrong[0], 'none')} "
                f"({len(wrong)} of {len(expected)} tensors differ)"
            )
        model.load_state_dict(weights)

    return dict(about["network"]), assign
