"""The one reader of pickles, as CIFAR's archives hold nothing else: plain values and numpy arrays, or an error."""

from __future__ import annotations

import io
import pickle
from typing import Any

import numpy as np

_RECONSTRUCT = np.empty(0).__reduce__()[0]  # the function has no public name, but every array's pickle starts with it
# Names as the publisher's Python 2 and numpy 1 wrote them, and their present meaning. Nothing else is ever looked up, so a
# pickle cannot call anything but these.
_ALLOWED = {
    ("numpy", "ndarray"): np.ndarray,
    ("numpy", "dtype"): np.dtype,
    ("numpy.core.multiarray", "_reconstruct"): _RECONSTRUCT,
    ("numpy._core.multiarray", "_reconstruct"): _RECONSTRUCT,
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
        value = _Restricted(io.BytesIO(data), encoding="bytes").load()
    except Exception as error:  # a damaged pickle ends in any exception
        raise ValueError(f"not a readable pickle of plain data: {error}") from None
    return value
