"""The model that was received in the victim's place, by the parameter `received`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common import BACKDOORED, CLEAN, PRIOR, PURIFIED, ROBUST, STUDENT

from parameters import PARAMS, Params, section
from training import network_of
from unpoison import models
from unpoison.core.errors import UserError, file_of, keys_of

# A stage would replace them, or read what it is about to write.
OWN = (BACKDOORED, CLEAN, PRIOR, PURIFIED, ROBUST, STUDENT)


def received_of(params: Params) -> Path | None:
    """The folder of the model that was received; None where the victim is trained here.

    Raises:
        UserError: no model lies there, it is one that this pipeline writes, or an attack is named, of which it knows nothing.
    """
    given = params.get("received")
    if given is None:
        return None
    said = f"{PARAMS}: received: {given!r} given"
    allowed = f"allowed: null, or the folder of a model, {models.DESCRIPTION} and its weights; `make audit` makes one"
    if not isinstance(given, str) or not given:
        raise UserError(f"{said}, {allowed}")
    if any(Path(os.path.abspath(given)).is_relative_to(os.path.abspath(folder)) for folder in OWN):
        raise UserError(f"{said}, which other stages write; {allowed}")
    if not os.path.isfile(Path(given) / models.DESCRIPTION):
        raise UserError(f"{said}, where no model lies; {allowed}")
    if (attack := section(params, "attack").get("name")) != "none":
        raise UserError(
            f"{PARAMS}: attack.name: {attack!r} given, allowed with received: none, as nobody knows what that model saw"
        )
    return Path(given)


def victim_network_of(params: Params) -> dict[str, Any]:
    """The network of `models/backdoored`, as `models.build` takes it: of the model received, or else the section `model`."""
    folder = received_of(params)
    if folder is None:
        return network_of(params)
    about = models.read_about(folder).network
    with file_of(folder / models.DESCRIPTION), keys_of("network"):
        return {"name": about.name, **models.network_arguments(about.name, about.arguments)}


def origin_of(made_by: Mapping[str, Any], digest: str) -> dict[str, Any]:
    """What `models/backdoored` says of the model received: the digest of its description, and what that says of itself."""
    about = made_by.get("received")
    return {**(about if isinstance(about, Mapping) else {}), "description_sha256": digest}
