"""The verdict on a model that was received."""
from __future__ import annotations

from collections.abc import Mapping
from typing import Any


def kind_of(network: Mapping[str, Any]) -> str:
    """A network by name and arguments, as `NETWORK=` takes it: `resnet18 stem=conv3_pool width=16`."""
    own = [f"{key}={value}" for key, value in sorted(network["arguments"].items()) if key != "pretrained"]
    return " ".join([network["name"], *own])
