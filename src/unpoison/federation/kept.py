"""The global model after each round, as an artefact: what a curve of ACC and ASR is measured on, away from the training."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from torch import Tensor

from ..core.errors import UserError
from ..core.files import new_folder
from ..core.hyperparameters import Count
from ..core.manifest import Manifest, check_file, read_manifest, write_manifest
from ..core.weights import Weights, differences, save_weights, shapes_of
from ..models.classifier import Classifier

FORMAT, DESCRIPTION = "unpoison-rounds-1", "rounds.json"


class RoundsManifest(Manifest):
    """What `rounds.json` holds: the numbers of the rounds, rising; none of a model that no federation trained."""

    rounds: list[Count]


def write_rounds(folder: Path, states: Mapping[int, Mapping[str, Tensor]], made_from: dict[str, str]) -> None:
    """Write the weights of rounds, a file each.

    Args:
        folder: place of the artefact.
        states: weights by name, by number of the round.
        made_from: digest by name of what they belong to; not written where there is no round, so that another model that no
            federation trained is no other artefact.
    """
    with new_folder(folder) as staging:
        for number, state in states.items():
            save_weights(state, staging / _file(number))
        about = {"format": FORMAT, "rounds": sorted(states), "made_from": made_from if states else {}}
        write_manifest(staging, DESCRIPTION, about)


def read_rounds(folder: Path) -> list[int]:
    """The numbers of the rounds that are kept. Raises UserError where the artefact is missing or of another format."""
    rounds = read_manifest(folder, DESCRIPTION, FORMAT, RoundsManifest).rounds
    if rounds != sorted(set(rounds)):
        raise UserError(f"{folder / DESCRIPTION}: rounds: allowed: numbers in rising order, each once")
    return rounds


def load_round(folder: Path, number: int, model: Classifier) -> None:
    """Set the weights of `model` to those after a round.

    Raises:
        UserError: a file is missing, changed, or of another network.
    """
    about = read_manifest(folder, DESCRIPTION, FORMAT, RoundsManifest)
    weights = Weights(check_file(folder, about, _file(number)))
    if wrong := differences(weights.shapes, shapes_of(model.state_dict())):
        raise UserError(f"{weights.path}: weights of another architecture than the model's, first {wrong[0]}")
    model.load_state_dict(weights.read())


def _file(number: int) -> str:
    return f"{number:05d}.safetensors"
