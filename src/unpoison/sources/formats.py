"""The publishers' formats: CIFAR's pickles, MNIST's IDX files, SVHN's MATLAB arrays, GTSRB's and Imagenette's archives.

Each reader takes a file for what it is, whoever vouched for it: sizes, counts and labels are checked before they are used.
"""

from __future__ import annotations

import csv
import gzip
import io
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from ..core.arrays import Images, IntArray
from ..core.errors import UserError
from .containers import list_members, read_members
from .folder import open_folder
from .names import shown
from .pickles import load_plain
from .source import Rows, Source

Arrays = dict[str, tuple[Images, IntArray]]
_MOST_BYTES = 256 << 20
"""Most that an IDX or MATLAB file may expand to; the largest one that is published has 225 MB."""
_MOST_TABLE = 16 << 20  # bytes of GTSRB's table


def _in_memory(classes: tuple[str, ...], arrays: Arrays) -> Source:
    """A source of images and labels by part, for sets that fit in memory; samples are named by part and number."""

    def read(rows: Rows) -> Iterator[tuple[str, int, bytes | Images | str]]:
        for part, part_rows in rows.items():
            for row in part_rows:
                yield part, int(row), arrays[part][0][row]

    labels = {part: part_labels.astype(np.int64) for part, (_, part_labels) in arrays.items()}
    names = {part: [f"{part}/{row:05d}" for row in range(len(part_labels))] for part, part_labels in labels.items()}
    return Source(classes, labels, names, read, {})


def _check_labels(path: Path, images: Images, labels: IntArray, classes: int) -> None:
    """Raises UserError unless there is a label from 0 to `classes` - 1 for each image, and any image at all."""
    if len(images) != len(labels) or not len(labels):
        raise UserError(
            f"{path}: {len(labels)} labels found for {len(images)} images, allowed: one for each, and any at all"
        )
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise UserError(f"{path}: labels {low} to {high} found, allowed: 0 to {classes - 1}")


# The names in both archives; nothing else is unpickled.
_BATCHES = {"train": tuple(f"data_batch_{number}" for number in range(1, 6)), "test": ("test_batch",)}
_HUNDRED = {"train": ("train",), "test": ("test",)}
CIFAR10_FILES = (*_BATCHES["train"], "test_batch", "batches.meta")
CIFAR100_FILES = ("train", "test", "meta")


def files_named(path: Path, wanted: tuple[str, ...]) -> Iterator[tuple[str, bytes]]:
    """The files of an archive or folder that have one of the names, whatever folder they lie in.

    Raises:
        UserError: damaged; a file cannot be read, or occurs twice.
    """
    contents = list_members(path)
    for name, problem, *_ in contents.problems:
        if name.split("/")[-1] in wanted:
            raise UserError(f"{path}: {shown(name)}: {problem}")
    found = {name: name.split("/")[-1] for name in contents.files if name.split("/")[-1] in wanted}
    if len(set(found.values())) < len(found):
        raise UserError(f"{path}: {', '.join(map(shown, sorted(found)))}: several files of one name, allowed: one")
    for name, content in read_members(path, found.keys(), contents.links):
        if isinstance(content, str):
            raise UserError(f"{path}: {shown(name)}: {content}")
        yield found[name], content


def cifar(archive: Path) -> Source:
    """CIFAR-10 and CIFAR-100: pickled dictionaries of uint8 [n, 3072], channel by channel."""
    # Read in one pass, the gzip stream's own order, and sorted out afterwards.
    batches: dict[str, Any] = {}
    for name, content in files_named(archive, (*CIFAR10_FILES, *CIFAR100_FILES)):
        try:
            batches[name] = load_plain(content)
        except ValueError as error:
            raise UserError(f"{archive}: {name}: {error}") from None
    # CIFAR-100 has one file per part and two kinds of labels, of which the 100 classes are the fine ones.
    hundred = "train" in batches
    key, meta, listed = (
        (b"fine_labels", "meta", b"fine_label_names") if hundred else (b"labels", "batches.meta", b"label_names")
    )
    parts = _HUNDRED if hundred else _BATCHES
    wanted = (meta, *(file for files in parts.values() for file in files))
    for file in wanted:
        if not isinstance(batches.get(file), dict):
            raise UserError(f"{archive}: not CIFAR's layout: {file} is absent or no dictionary")
    names = batches[meta].get(listed)
    if not isinstance(names, list) or not all(isinstance(name, bytes) for name in names):
        raise UserError(f"{archive}: not CIFAR's layout: {meta} has no list of class names")
    classes = tuple(shown(name.decode("utf-8", "surrogateescape")) for name in names)
    if not classes or len(set(classes)) < len(classes):
        raise UserError(f"{archive}: {meta}: {len(set(classes))} different names of {len(classes)} classes found")
    arrays = {}
    for part, files in parts.items():
        read = [_cifar_batch(archive / file, batches[file], key, len(classes)) for file in files]
        images, labels = np.concatenate([each[0] for each in read]), np.concatenate([each[1] for each in read])
        arrays[part] = images.reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1), labels
    return _in_memory(classes, arrays)


def _cifar_batch(path: Path, batch: Mapping[bytes, Any], key: bytes, classes: int) -> tuple[Images, IntArray]:
    """Rows uint8 [n, 3072] and labels int64 [n] of one file."""
    data, given = batch.get(b"data"), batch.get(key)
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or data.ndim != 2 or data.shape[1] != 3072:
        raise UserError(f"{path}: not CIFAR's layout: data is no array uint8 [n, 3072]")
    if not isinstance(given, list) or not all(type(label) is int and 0 <= label < classes for label in given):
        raise UserError(f"{path}: not CIFAR's layout: {key.decode()} is no list of numbers from 0 to {classes - 1}")
    labels = np.array(given, np.int64)
    _check_labels(path, data, labels, classes)
    return np.asarray(data), labels


def unpacked(path: Path) -> BinaryIO:
    """A file's content, without the gzip around it where there is one."""
    with path.open("rb") as stream:
        magic = stream.read(2)
    return gzip.open(path) if magic == b"\x1f\x8b" else path.open("rb")  # type: ignore[return-value]


def _idx_array(path: Path, dimensions: int) -> Images:
    """The array of an IDX file of bytes: a magic number, a size per dimension (big-endian), then the values."""
    try:
        with unpacked(path) as stream:
            # The magic number: two zeros, 8 for unsigned bytes, and the number of dimensions.
            magic = stream.read(4)
            if magic != bytes([0, 0, 8, dimensions]):
                raise UserError(f"{path}: not an IDX file of bytes in {dimensions} dimensions")
            header = stream.read(4 * dimensions)
            if len(header) < 4 * dimensions:
                raise UserError(f"{path}: ends within the header")
            sizes = [int(size) for size in np.frombuffer(header, ">u4")]
            count = 1
            for size in sizes:
                count *= size
            if not 0 < count <= _MOST_BYTES:
                raise UserError(f"{path}: an array of {sizes} announced, allowed: 1 to {_MOST_BYTES} bytes")
            # A byte more than announced, at most, is expanded of whatever it holds.
            data = stream.read(count + 1)
    except (OSError, EOFError, zlib.error) as error:
        raise UserError(f"{path}: not readable as gzip ({error})") from None
    if len(data) != count:
        found = f"{len(data)} of them" if len(data) < count else "more"
        raise UserError(f"{path}: {count} values announced, {found} found")
    return np.frombuffer(data, np.uint8).reshape(sizes)


def idx(classes: tuple[str, ...]) -> Callable[..., Source]:
    """Reader of MNIST and its relatives: two IDX files per part, gzipped or not."""

    def source(train_images: Path, train_labels: Path, test_images: Path, test_labels: Path) -> Source:
        arrays = {}
        for part, images_path, labels_path in (
            ("train", train_images, train_labels),
            ("test", test_images, test_labels),
        ):
            images, labels = _idx_array(images_path, 3), _idx_array(labels_path, 1)
            _check_labels(labels_path, images, labels.astype(np.int64), len(classes))
            arrays[part] = images[..., None], labels.astype(np.int64)
        return _in_memory(classes, arrays)

    return source


def svhn(train: Path, test: Path) -> Source:
    """SVHN's cropped house numbers: MATLAB arrays [32, 32, 3, n]; the digit 0 has the label 10."""
    from scipy.io import loadmat, whosmat

    arrays = {}
    for part, path in (("train", train), ("test", test)):
        # Sizes and types first, which takes no memory: the arrays may be compressed.
        try:
            found = {name: (shape, kind) for name, shape, kind in whosmat(path)}
        except Exception as error:  # scipy's reader ends in any exception
            raise UserError(f"{path}: not readable as MATLAB's format ({error})") from None
        shape, kind = found.get("X", ((), "absent"))
        if "y" not in found:
            raise UserError(f"{path}: y is absent, allowed: a label for each image")
        labels_shape = found["y"][0]
        if kind != "uint8" or len(shape) != 4 or shape[:3] != (32, 32, 3) or not 0 < shape[3] <= _MOST_BYTES // 3072:
            raise UserError(f"{path}: X is {kind} {list(shape)}, allowed: uint8 [32, 32, 3, n]")
        if labels_shape not in ((shape[3], 1), (1, shape[3])):
            raise UserError(f"{path}: y is {list(labels_shape)}, allowed: [{shape[3]}, 1], a label for each image")
        try:
            content = loadmat(path, variable_names=("X", "y"))
            labels = content["y"].ravel().astype(np.int64)
        except Exception as error:
            raise UserError(f"{path}: not readable as MATLAB's format ({error})") from None
        if content["X"].shape != shape or content["X"].dtype != np.uint8:
            raise UserError(f"{path}: X is not what its header announces")
        _check_labels(path, content["X"].transpose(3, 0, 1, 2), labels - 1, 10)
        arrays[part] = content["X"].transpose(3, 0, 1, 2), labels % 10
    return _in_memory(tuple("0123456789"), arrays)


_GTSRB_TABLE, _GTSRB_TEST = "GT-final_test.csv", "GTSRB/Final_Test/Images"


def gtsrb(train: Path, test: Path, truth: Path) -> Source:
    """GTSRB's traffic signs: PPM files of many sizes in zips; the test labels come in a file of their own."""
    # The training zip has a folder per class. The test zip has none, so the order of its samples is that of the table.
    source = open_folder(train)
    place_of = {name: label for label, name in enumerate(source.classes)}
    names: list[str] = []
    labels: list[int] = []
    for line, row in enumerate(_gtsrb_rows(truth), 2):
        name, label = row.get("Filename"), (row.get("ClassId") or "").strip()
        if not name or not (label.isascii() and label.isdigit()) or (folder := f"{int(label[:9]):05d}") not in place_of:
            raise UserError(
                f"{truth}: {_GTSRB_TABLE}, line {line}: Filename {name!r:.100} and ClassId {label!r:.100} found, allowed: a "
                f"name, and a class of {train.name} ({len(place_of)} classes)"
            )
        names.append(f"{_GTSRB_TEST}/{name}")
        labels.append(place_of[folder])
    if not names or len(set(names)) < len(names):
        raise UserError(
            f"{truth}: {_GTSRB_TABLE} names {len(set(names))} files in {len(names)} lines, allowed: one in each"
        )

    def read(wanted: Rows) -> Iterator[tuple[str, int, bytes | Images | str]]:
        yield from source.read({part: rows for part, rows in wanted.items() if part == "train"})
        place = {names[row]: int(row) for row in wanted.get("test", [])}
        for name, content in read_members(test, place.keys()):
            yield "test", place.pop(name), content
        for row in place.values():
            yield "test", row, f"absent from {test.name}"

    shown_names = {**source.names, "test": [shown(name) for name in names]}
    return replace(source, labels={**source.labels, "test": np.array(labels, np.int64)}, names=shown_names, read=read)


def _gtsrb_rows(truth: Path) -> list[dict[str, str]]:
    """The lines of the table of test labels, by column."""
    try:
        with zipfile.ZipFile(truth) as archive, archive.open(_GTSRB_TABLE) as file:
            content = file.read(_MOST_TABLE + 1)
        if len(content) > _MOST_TABLE:
            raise UserError(f"{truth}: {_GTSRB_TABLE} is larger than {_MOST_TABLE >> 20} MiB")
        rows = csv.DictReader(io.StringIO(content.decode("utf-8-sig")), delimiter=";", strict=True)
        missing = [column for column in ("Filename", "ClassId") if column not in (rows.fieldnames or [])]
        if missing:
            raise UserError(f"{truth}: {_GTSRB_TABLE} has no column {missing[0]}")
        return list(rows)
    except UserError:
        raise
    except Exception as error:  # a damaged zip or table ends in any exception
        raise UserError(f"{truth}: {_GTSRB_TABLE} cannot be read ({type(error).__name__}: {error})") from None


# WordNet's ids, the names of the folders, and fast.ai's names for the ten classes.
IMAGENETTE = {
    "n01440764": "tench",
    "n02102040": "English springer",
    "n02979186": "cassette player",
    "n03000684": "chain saw",
    "n03028079": "church",
    "n03394916": "French horn",
    "n03417042": "garbage truck",
    "n03425413": "gas pump",
    "n03445777": "golf ball",
    "n03888257": "parachute",
}


def imagenette(archive: Path) -> Source:
    """fast.ai's ten classes of ImageNet: folders by WordNet id, given their English names."""
    source = open_folder(archive)
    return replace(source, classes=tuple(IMAGENETTE.get(name, name) for name in source.classes))
