"""Tensors in safetensors files: what the header says is compared with what is wanted before any tensor is read."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.overrides import TorchFunctionMode

from .errors import UserError
from .files import open_file

# A header of this length describes a hundred thousand tensors.
_MAX_HEADER = 16 << 20
_TYPES = {
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "F64": torch.float64,
    "I64": torch.int64,
}
# What is exact when it becomes float32.
_NARROWER = (torch.float16, torch.bfloat16)

Shapes = Mapping[str, tuple[tuple[int, ...], torch.dtype | None]]
"""Shape and type of each tensor by name."""


class Weights:
    """A safetensors file whose tensors are not read yet.

    Attributes:
        path: file.
        shapes: shape and type of each tensor by name; None for a type that no network of this project has.

    Raises:
        UserError: no safetensors file, or a damaged one.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        with open_file(path) as file:
            length = int.from_bytes(file.read(8), "little")
        if length > _MAX_HEADER:
            raise UserError(f"{path}: not a readable safetensors file (a header of {length} bytes)")
        with self._opened() as archive:
            # No mapping, though it has keys.
            slices = {name: archive.get_slice(name) for name in archive.keys()}  # noqa: SIM118
            self.shapes: Shapes = {
                name: (tuple(part.get_shape()), _TYPES.get(part.get_dtype())) for name, part in slices.items()
            }

    def read(self) -> dict[str, Tensor]:
        """The tensors by name.

        Raises:
            UserError: a value is not finite, or a variance is negative.
        """
        with self._opened() as archive:
            tensors = {name: archive.get_tensor(name) for name in self.shapes}
        for name, value in tensors.items():
            if value.is_floating_point() and not value.isfinite().all():
                raise UserError(
                    f"{self.path}: {name} has values that are not finite: made by training that diverged, or damaged; "
                    "allowed: finite weights"
                )
            if name.endswith("running_var") and value.numel() and value.min() < 0:
                raise UserError(f"{self.path}: {name} has a negative variance, allowed: from 0")
        return tensors

    def _opened(self) -> Any:
        try:
            return safe_open(str(self.path), framework="pt")
        except (SafetensorError, OSError, ValueError) as error:
            raise UserError(f"{self.path}: not a readable safetensors file ({str(error)[:300]})") from None


class WithoutMemory(TorchFunctionMode):
    """A block in which weights that a network makes for itself have shapes and no memory.

    Small tensors that it computes with are real ones; `.to("meta")` afterwards takes them along.
    """

    _MAKERS = frozenset({torch.empty, torch.zeros, torch.ones, torch.full, torch.rand, torch.randn})

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        options = dict(kwargs or {})
        if func in self._MAKERS and options.get("device") is None:
            options["device"] = "meta"
        return func(*args, **options)


def shapes_of(state: Mapping[str, Tensor]) -> Shapes:
    """Shape and type of each tensor of a state dict."""
    return {name: (tuple(value.shape), value.dtype) for name, value in state.items()}


def differences(given: Shapes, expected: Shapes) -> list[str]:
    """Names of tensors that are absent, not the network's, or of another shape or type, in the network's order.

    Numbers of 16 bits may stand for ones of 32, which hold each of them.
    """

    def fits(name: str) -> bool:
        if name not in given or name not in expected:
            return False
        (shape, kind), (wanted, wanted_kind) = given[name], expected[name]
        return shape == wanted and (kind == wanted_kind or (wanted_kind == torch.float32 and kind in _NARROWER))

    return [name for name in dict.fromkeys([*expected, *given]) if not fits(name)]


def said_of(name: str, shapes: Shapes, otherwise: str) -> str:
    """Shape of a tensor for a message, with its type where that is not float32."""
    if name not in shapes:
        return otherwise
    shape, kind = shapes[name]
    return (
        f"{shape}" if kind == torch.float32 else f"{shape} of {str(kind or 'an unknown type').removeprefix('torch.')}"
    )


def prefix_of(given: Iterable[str], expected: Iterable[str]) -> str:
    """What the names given have in front of the network's own, as wrappers of a network leave it ("module."), or ""."""
    names, wanted = set(given), [name for name in expected if not name.endswith(".num_batches_tracked")]
    if not wanted or wanted[0] in names:
        return ""
    for name in sorted(names):
        prefix = name.removesuffix(wanted[0])
        if prefix != name and prefix.endswith(".") and all(f"{prefix}{other}" in names for other in wanted[1:]):
            return prefix
    return ""


def save_weights(tensors: Mapping[str, Tensor], path: Path) -> None:
    """Write tensors without metadata: with two keys or more the file's bytes would differ from run to run."""
    try:
        save_file({name: value.detach().cpu().contiguous() for name, value in tensors.items()}, path)
    except SafetensorError as error:
        # A full disk, which the library wraps in an error of its own.
        raise OSError(str(error)) from None
