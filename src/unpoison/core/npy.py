"""Arrays in .npy and .npz files: what a header claims is compared with what the file holds before memory is taken."""

from __future__ import annotations

import io
import math
import zipfile
from pathlib import Path
from typing import IO, Any

import numpy as np
from numpy.lib import format as npy
from numpy.typing import DTypeLike, NDArray

from .arrays import Arrays
from .errors import UserError
from .files import check_regular, open_file

Shape = tuple[int | str, ...]
"""Sizes of an array; a letter stands for any size."""


def load_array(
    path: Path, dtype: DTypeLike | None = None, shape: Shape | None = None, *, mmap: bool = False
) -> NDArray[Any]:
    """The array in a .npy file, read or mapped; pickled objects are refused.

    Args:
        path: file.
        dtype: type that it must have; None: any of whole or real numbers or booleans.
        shape: sizes that it must have, ("n", 3); None: any.
        mmap: whether the file is mapped instead of read.

    Raises:
        UserError: a missing file, one that is no array, or an array of another type or shape.
    """
    with open_file(path) as file:
        size = file.seek(0, io.SEEK_END)
        file.seek(0)
        header = _header(file, size, path)
        check_array(path, *header[:2], dtype, shape)
        # The whole file is described now, so neither call can ask for more memory than it is long.
        if not mmap:
            file.seek(0)
            array: NDArray[Any] = npy.read_array(file, allow_pickle=False)
            return array
        mapped: NDArray[Any] = np.load(path, mmap_mode="r", allow_pickle=False)
        return mapped


def load_arrays(path: Path) -> Arrays:
    """The arrays in a .npz file, as `numpy.savez` writes it: not compressed, so it holds what it is long.

    Raises:
        UserError: a missing file, or one that is no such archive, damaged ones included.
    """
    check_regular(path)
    arrays: Arrays = {}
    try:
        with zipfile.ZipFile(path) as archive:
            entries, size = archive.infolist(), path.stat().st_size
            # Entries may not share bytes, or a small file would hold large arrays many times over.
            if sum(entry.file_size for entry in entries) > size:
                raise ValueError("its entries are longer than the file")
            for entry in entries:
                name = entry.filename.removesuffix(".npy")
                if entry.compress_type != zipfile.ZIP_STORED or name == entry.filename or name in arrays:
                    raise ValueError(f"entry {entry.filename!r}, allowed: arrays, not compressed, each once")
                # Reading to the end compares the checksum that a zip archive keeps of each entry.
                content = archive.read(entry)
                _header(io.BytesIO(content), len(content), path)
                arrays[name] = npy.read_array(io.BytesIO(content), allow_pickle=False)
    except UserError:
        raise
    # Not a list of errors: damaged directories, compressions it lacks and passwords bring others with every version.
    except Exception as error:
        raise UserError(f"{path}: not a readable .npz archive ({error})"[:600]) from None
    return arrays


def check_array(
    path: Path, found: np.dtype[Any], size: tuple[int, ...], dtype: DTypeLike | None, shape: Shape | None
) -> None:
    """Raises UserError for an array of another type or shape than a file is to hold."""
    fits = shape is None or (
        len(size) == len(shape)
        and all(given == wanted or isinstance(wanted, str) for given, wanted in zip(size, shape, strict=True))
    )
    if not fits or (dtype is not None and found != np.dtype(dtype)):
        wanted = "any shape" if shape is None else f"[{', '.join(map(str, shape))}]"
        kind = "" if dtype is None else f"{np.dtype(dtype)} "
        raise UserError(f"{path}: {found} of shape {size} found, allowed: {kind}{wanted}")


def check_masks(path: Path, masks: NDArray[Any]) -> None:
    """Raises UserError for masks in a file that are not real numbers of 0 to 1."""
    if masks.dtype.kind != "f" or not ((masks >= 0) & (masks <= 1)).all():
        raise UserError(f"{path}: masks: allowed: real numbers of 0 to 1")


def _header(file: IO[bytes], size: int, path: Path) -> tuple[np.dtype[Any], tuple[int, ...]]:
    """Type and shape of the array that begins in an open file and fills its `size` bytes."""
    try:
        version = npy.read_magic(file)
        readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
        if version not in readers:
            raise ValueError(f"version {version} of the format, allowed: 1.0, 2.0")
        shape, _, dtype = readers[version](file)
        # Numbers and truth values alone: objects would be unpickled, and types of no size claim any shape.
        if dtype.kind not in "biuf" or any(type(side) is not int or side < 0 for side in shape):
            raise ValueError(f"{dtype} of shape {shape}, allowed: numbers")
        length = math.prod(shape) * dtype.itemsize
        if file.tell() + length != size:
            raise ValueError(f"{size} bytes, its header stands for {file.tell() + length}")
    # Not a list of errors: the header is text that is taken for a Python literal, with all errors of a tokenizer and parser.
    except Exception as error:
        raise UserError(f"{path}: not a readable .npy array ({error})"[:600]) from None
    return dtype, shape
