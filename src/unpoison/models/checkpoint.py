"""Checkpoints: `model.safetensors` (weights, no metadata) and `model.json` (how to rebuild and where it comes from)."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save_file

from ..core.errors import UserError
from ..core.files import check_file, new_folder, read_json, write_manifest
from .classifier import Classifier

WEIGHTS, DESCRIPTION = "model.safetensors", "model.json"


def save(model: Classifier, folder: Path, *, classes: tuple[str, ...], made_by: dict[str, Any]) -> None:
    """Write a checkpoint folder. `made_by` (stage, recipe, seed) goes to `model.json` as it is."""
    with new_folder(folder) as staging:
        weights = {name: value.detach().cpu().contiguous() for name, value in model.state_dict().items()}
        save_file(weights, staging / WEIGHTS)
        about = {"format": "unpoison-model-1", "network": model.description, "classes": list(classes)}
        write_manifest(staging, DESCRIPTION, {**about, "made_by": made_by})


def read_checkpoint(folder: Path) -> tuple[dict[str, Any], Callable[[Classifier], None]]:
    """The network's description, and a function that loads the weights into a network built from it."""
    folder = Path(folder)
    about = read_json(folder / DESCRIPTION)
    if about.get("format") != "unpoison-model-1" or not isinstance(about.get("network"), dict):
        raise UserError(f"{folder / DESCRIPTION}: format {about.get('format')!r} found, allowed: 'unpoison-model-1'")
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
