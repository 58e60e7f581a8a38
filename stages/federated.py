"""What the stages that train the victim's network share where `train.federation` asks for a federation."""

from __future__ import annotations

from torch import Tensor

from parameters import PARAMS, Params, block, section
from unpoison.compute.distributed import world
from unpoison.core.errors import UserError, file_of, keys_of
from unpoison.data.imageset import ImageSet
from unpoison.federation import settings
from unpoison.federation.engines import engine_of_clients
from unpoison.federation.rounds import train_federated
from unpoison.federation.settings import Federation
from unpoison.models.classifier import Classifier
from unpoison.training.loop import History
from unpoison.training.recipe import Recipe

States = dict[int, dict[str, Tensor]]
"""Weights by name, by number of the round."""


def federation_of(params: Params) -> Federation | None:
    """The block `train.federation`; None where the victim is trained in one place. Raises UserError for what is wrong in it."""
    given = section(params, "train").get("federation")
    if given is None:
        return None
    values = block(given, f"{PARAMS}: train.federation")
    with file_of(PARAMS), keys_of("train.federation"):
        return settings.federation_of(values)


def check_attackers(federation: Federation, *, attacked: bool) -> None:
    """Raises UserError for attackers without an attack, and for an attack that nobody carries out."""
    if attacked == bool(federation.attackers):
        return
    given = f"{PARAMS}: train.federation.attackers: {federation.attackers} given"
    raise UserError(f"{given}, allowed {'with an attack: at least 1' if attacked else 'with attack.name none: 0'}")


def refuse_hand(what: str) -> UserError:
    """The error for an attack with a hand in the training itself."""
    return UserError(
        f"{PARAMS}: train.federation: given with {what}, allowed: an attack that leaves its poison in the files, as "
        "attackers hold poisoned samples and train on them as all clients do; or train.federation: null"
    )


def train_in_federation(
    model: Classifier,
    clean: ImageSet,
    received: ImageSet,
    recipe: Recipe,
    federation: Federation,
    *,
    seed: int,
    what: str,
) -> tuple[History, States]:
    """Train `model` in place; arguments as for `train_federated`. The rounds are those of the curve.

    Raises:
        UserError: several processes, or what `train_federated` refuses.
    """
    if (size := world().size) > 1:
        raise UserError(
            f"{PARAMS}: train.federation: given with {size} processes, allowed: 1, or train.federation: null"
        )
    states: States = {}

    def keep(number: int, trained: Classifier) -> None:
        states[number] = {name: value.detach().cpu().clone() for name, value in trained.state_dict().items()}

    engine = engine_of_clients()
    with file_of(PARAMS), keys_of("train"):
        history = train_federated(
            model, clean, received, recipe, federation, seed=seed, what=what, keep=keep, engine=engine
        )
    return history, states
