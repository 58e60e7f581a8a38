"""Pretrained weights for `torchvision:` and `timm:` networks, from a `.safetensors` file or from their publisher.

Only `models.build` uses them. A checkpoint holds the trained weights themselves, so loading one needs none of this.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from ..core.errors import ParameterError, UserError
from ..core.weights import Weights, differences, prefix_of, said_of, shapes_of


@dataclass(frozen=True, kw_only=True)
class LibraryOptions:
    """The arguments of every `torchvision:` and `timm:` network.

    Attributes:
        pretrained: False, True (the publisher's weights, downloaded), or the path of a `.safetensors` file with the
            network's own state dict.
    """

    pretrained: bool | str = False


def check_path(pretrained: Any) -> None:
    """Refuse a `pretrained` that names no `.safetensors` file."""
    if isinstance(pretrained, str) and not (pretrained.endswith(".safetensors") and Path(pretrained).is_file()):
        raise ParameterError(
            f"pretrained: {pretrained!r} given, allowed: true, false, or the path of a .safetensors file"
        )


def read_weights(path: str) -> dict[str, Tensor]:
    """The state dict in a file. Raises UserError where it is no safetensors file, or a value in it is not finite."""
    return Weights(Path(path)).read()


def put_weights(
    network: nn.Module, weights: Mapping[str, Tensor], *, classifiers: Sequence[str], name: str, source: str
) -> None:
    """Load `weights` into the library's own network, before it is taken apart.

    Args:
        network: network of the library, changed in place.
        weights: its whole state dict; batch norms' step counters, which old files lack, may be absent.
        classifiers: names of its last linear layers; those for another number of classes keep their initial weights.
        name: name of the network, for the message.
        source: file or address of the weights, for the message.

    Raises:
        UserError: a tensor is absent, has another shape or is not the network's.
    """
    own = network.state_dict()
    given = dict(weights)
    for layer in classifiers:
        weight, expected_weight = given.get(f"{layer}.weight"), own[f"{layer}.weight"]
        # The width of what the layer reads must still be right, or the file is another network's.
        if weight is not None and len(weight) != len(expected_weight) and weight.shape[1:] == expected_weight.shape[1:]:
            given |= {f"{layer}.{part}": own[f"{layer}.{part}"] for part in ("weight", "bias")}
    # From here on the two must agree, name by name and shape by shape.
    given |= {key: own[key] for key in own if key.endswith(".num_batches_tracked") and key not in given}
    shapes, expected = shapes_of(given), shapes_of(own)
    if wrong := differences(shapes, expected):
        if prefix := prefix_of(weights, own):
            reason = f"every name begins with {prefix!r}, as a wrapper of the network leaves it; take that off"
        else:
            reason = f"{wrong[0]} is {said_of(wrong[0], shapes, 'absent')}"
        raise UserError(
            f"{source}: not the weights of {name} as built: {reason}, the network has "
            f"{said_of(wrong[0], expected, 'none')} ({len(wrong)} of {len(own)} tensors differ)"
        )
    # A safetensors file has no module versions, which some torchvision networks look for: the present ones are right.
    ordered = OrderedDict(given)
    ordered._metadata = own._metadata  # type: ignore[attr-defined]
    network.load_state_dict(ordered)


def unavailable(name: str, tried: str, error: Exception) -> UserError:
    """The error for weights that could not be had from their publisher."""
    return UserError(
        f"{name}: pretrained weights not available: tried {tried} ({type(error).__name__}: {error}); "
        "give pretrained the path of a .safetensors file with the network's state dict instead"
    )
