"""The networks of models that are trained beside the victim: that of the robust methods.

Apart from `training`: the victim's stage runs nothing of this, and a change here does not train him again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from parameters import PARAMS, Params, section
from training import network_of
from unpoison import models
from unpoison.core.errors import file_of, keys_of


def robust_network_of(params: Params) -> dict[str, Any]:
    """The network of robust methods, as `models.build` takes it: the victim's, with the changes of `robust.model`, or another."""
    return _changed(params, "robust.model", network_of(params))


def _changed(params: Params, place: str, otherwise: Mapping[str, Any]) -> dict[str, Any]:
    """The network of a section; where it names none, `otherwise` with its values in place."""
    # A key that is null is as good as absent, as in `model`.
    network = {key: value for key, value in section(params, place).items() if value is not None}
    if "name" not in network:
        network = {**otherwise, **network}
    name = network.pop("name")
    with file_of(PARAMS), keys_of(place):
        return {"name": name, **models.network_arguments(name, network)}
