"""The one reader of pickles, as CIFAR's archives hold nothing else: plain values and numpy arrays, or an error."""

from __future__ import annotations

import io
import pickle
import pickletools
import re
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .names import shown

_NUMBERS = re.compile(r"[iuf][1248]|b1")
_MOST_OPERATIONS = 2_000_000
# What plain values and arrays are written with. Among those left out are the ones that make objects of other classes, look
# values up elsewhere, or set memory aside before there is anything to put in it.
_OPERATIONS = re.compile(
    r"PROTO|FRAME|STOP|MARK|POP|MEMOIZE|(LONG_)?BIN(PUT|GET)|PUT|GET|NONE|NEW(TRUE|FALSE)|(BIN)?INT[12]?|LONG[14]?|(BIN)?FLOAT"
    r"|STRING|UNICODE|(SHORT_)?BIN(STRING|BYTES|UNICODE)|BIN(BYTES|UNICODE)8|(EMPTY_)?(LIST|DICT|TUPLE)|TUPLE[123]|APPENDS?"
    r"|SETITEMS?|(STACK_)?GLOBAL|REDUCE|BUILD"
)


class _Dtype:
    """In place of a type of numpy's while a pickle is read: what it is made of, until it is known to be one of numbers."""

    def __init__(self, name: Any, *_: Any) -> None:
        self._name = name.decode("ascii") if isinstance(name, bytes) else name
        self._order = ""

    def __setstate__(self, state: Any) -> None:
        # Version, byte order, then what structured types have.
        if not isinstance(state, tuple) or len(state) < 5 or any(part is not None for part in state[2:5]):
            raise pickle.UnpicklingError("it asks for a structured type, which is not allowed")
        self._order = state[1].decode("ascii") if isinstance(state[1], bytes) else state[1]

    def resolved(self) -> np.dtype[Any]:
        if self._order not in ("", "|", "<", ">", "=") or not _NUMBERS.fullmatch(self._name):
            raise pickle.UnpicklingError(f"it asks for arrays of {self._order}{self._name!r}, which are not allowed")
        order = "<" if self._order == "<" else ">" if self._order == ">" else ""
        return np.dtype(f"{order}{self._name}")


class _Array(np.ndarray[Any, Any]):
    """An array that takes over nothing but numbers, as many as there are."""

    def __setstate__(self, state: Any) -> None:
        _, shape, dtype, fortran, content = state
        if not isinstance(dtype, _Dtype) or not isinstance(content, bytes):
            raise pickle.UnpicklingError("it asks for an array of objects, which is not allowed")
        super().__setstate__((1, shape, dtype.resolved(), bool(fortran), content))  # type: ignore[arg-type]


def _reconstruct(kind: Any, *_: Any) -> NDArray[Any]:
    if kind is not _Array:
        raise pickle.UnpicklingError("it asks for an array of another kind, which is not allowed")
    return np.empty(0, np.uint8).view(_Array)


# Names as the publisher's Python 2 and numpy 1 wrote them, and what takes their place. Nothing else is ever looked up, so a
# pickle cannot call anything but these.
_ALLOWED = {
    ("numpy", "ndarray"): _Array,
    ("numpy", "dtype"): _Dtype,
    ("numpy.core.multiarray", "_reconstruct"): _reconstruct,
    ("numpy._core.multiarray", "_reconstruct"): _reconstruct,
}


class _Restricted(pickle.Unpickler):
    """An unpickler that looks up nothing but `_ALLOWED`."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it asks for {module}.{name}, which is not allowed")
        return _ALLOWED[module, name]


def load_plain(data: bytes) -> Any:
    """The value of a pickle of dictionaries, lists, numbers, byte strings and numpy arrays of numbers.

    Raises:
        ValueError: the pickle asks for anything else, or is damaged.
    """
    try:
        _check_operations(data)
        value = _Restricted(io.BytesIO(data), encoding="bytes").load()
    except Exception as error:  # a damaged pickle ends in any exception
        raise ValueError(f"not a readable pickle of plain data: {shown(str(error)) or type(error).__name__}") from None
    return value


def _check_operations(data: bytes) -> None:
    """Go through a pickle without carrying it out."""
    for number, (operation, argument, _) in enumerate(pickletools.genops(data)):
        if not _OPERATIONS.fullmatch(operation.name) or number > _MOST_OPERATIONS:
            raise pickle.UnpicklingError(f"it asks for {operation.name} ({number + 1}), which is not allowed")
        # The table of remembered values is as long as the largest place in it.
        if operation.name in ("PUT", "BINPUT", "LONG_BINPUT") and int(argument or 0) > number:
            raise pickle.UnpicklingError(f"it remembers value {argument} before there are as many")
