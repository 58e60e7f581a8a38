"""Hostile files of published sets, behind a digest that has been made to fit them; and pickles that ask for more."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import pickle
import re
import struct
import tarfile
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.io import savemat

from hostile.harness import Accepted, Case, Refused, knock
from picture_bytes import PIXELS, encoded
from unpoison.data.store import open_split
from unpoison.sources.build import BuildSettings, build_base
from unpoison.sources.pickles import load_plain
from unpoison.sources.published import PUBLISHED, File, open_published
from unpoison.sources.splits import SplitSettings


def prepare(folder: Path) -> list[int]:
    """Labels of the training split of the set that lies in `set/NAME`, whose files are taken for the published ones."""
    root = next((folder / "set").iterdir())
    entry = PUBLISHED[root.name]
    files = tuple(
        File(file.name, file.url, f"sha256:{hashlib.sha256((root / file.name).read_bytes()).hexdigest()}")
        for file in entry.files
    )
    PUBLISHED[root.name] = replace(entry, files=files)
    split = SplitSettings(reserve=0, public=0)
    source = open_published(root.name, root)
    build_base(source, folder / "base", split, BuildSettings(), defects=folder / "defects.txt")
    return open_split(folder / "base", "train").labels.tolist()


def idx(values: np.ndarray, *, magic: bytes = b"", sizes: tuple[int, ...] = ()) -> bytes:
    header = magic or bytes([0, 0, 8, values.ndim])
    return header + b"".join(struct.pack(">I", size) for size in sizes or values.shape) + values.tobytes()


IMAGES, LABELS = np.zeros((20, 28, 28), np.uint8), np.arange(20, dtype=np.uint8) % 10
GOOD_IDX = {
    "train-images-idx3-ubyte.gz": gzip.compress(idx(IMAGES)),
    "train-labels-idx1-ubyte.gz": gzip.compress(idx(LABELS)),
    "t10k-images-idx3-ubyte.gz": gzip.compress(idx(IMAGES)),
    "t10k-labels-idx1-ubyte.gz": gzip.compress(idx(LABELS)),
}


def put(name: str, files: Callable[[], dict[str, bytes]]) -> Callable[[Path], None]:
    def made(folder: Path) -> None:
        (folder / "set" / name).mkdir(parents=True)
        for file, content in files().items():
            (folder / "set" / name / file).write_bytes(content)

    return made


def mnist(name: str, file: str, content: Callable[[], bytes], reason: str) -> Case:
    """MNIST with one file replaced."""
    return Case(name, put("mnist", lambda: GOOD_IDX | {file: content()}), Refused(rf"{file}: {reason}"))


def tar_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w:gz") as tar:
        for name, content in files.items():
            info = tarfile.TarInfo(f"cifar-10-batches-py/{name}")
            info.size = len(content)
            tar.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def batch(data: Any = None, labels: Any = None) -> bytes:
    rows = np.zeros((4, 3072), np.uint8) if data is None else data
    return pickle.dumps({b"data": rows, b"labels": [0, 1, 2, 3] if labels is None else labels}, 4)


META = pickle.dumps({b"label_names": [b"class %d" % i for i in range(10)]}, 4)
BATCHES = {"batches.meta": META, "test_batch": batch(), **{f"data_batch_{i}": batch() for i in range(1, 6)}}


def cifar(name: str, files: Callable[[], dict[str, bytes | None]], reason: str) -> Case:
    """CIFAR-10 with files replaced, or left out where they are None."""

    def archive() -> dict[str, bytes]:
        changed = {**BATCHES, **files()}
        return {"cifar-10-python.tar.gz": tar_of({each: data for each, data in changed.items() if data is not None})}

    return Case(name, put("cifar10", archive), Refused(rf"cifar-10-python\.tar\.gz[/:] ?{reason}"))


def mat(images: Any, labels: Any, **more: Any) -> bytes:
    buffer = io.BytesIO()
    savemat(buffer, {"X": images, "y": labels, **more}, do_compression=True)
    return buffer.getvalue()


GOOD_MAT = mat(np.zeros((32, 32, 3, 20), np.uint8), np.uint8([[i % 10 + 1] for i in range(20)]))


def svhn(name: str, content: Callable[[], bytes], reason: str) -> Case:
    files = lambda: {"train_32x32.mat": content(), "test_32x32.mat": GOOD_MAT}  # noqa: E731
    return Case(name, put("svhn", files), Refused(rf"train_32x32\.mat: {reason}"))


def zip_of(files: dict[str, bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, content in files.items():
            archive.writestr(name, content)
    return buffer.getvalue()


PPM = encoded(PIXELS, "PPM")
SIGNS = {f"GTSRB/Training/{i % 2:05d}/{i:05d}.ppm": PPM for i in range(4)}
TESTS = {f"GTSRB/Final_Test/Images/{i:05d}.ppm": PPM for i in range(2)}


def gtsrb(name: str, table: Callable[[], bytes], reason: str) -> Case:
    files = lambda: {  # noqa: E731
        "GTSRB-Training_fixed.zip": zip_of(SIGNS),
        "GTSRB_Final_Test_Images.zip": zip_of(TESTS),
        "GTSRB_Final_Test_GT.zip": table(),
    }
    return Case(name, put("gtsrb", files), Refused(reason))


def table(*lines: str, head: str = "Filename;Width;ClassId") -> bytes:
    return zip_of({"GT-final_test.csv": "\n".join([head, *lines]).encode()})


def object_array() -> bytes:
    """An array of objects built from raw bytes, which are taken for addresses."""
    head = b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R"
    return (
        head
        + b"(K\x01K\x01\x85cnumpy\ndtype\nU\x02O8K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK?tb\x89U\x08"
        + b"A" * 8
        + b"tb."
    )


def structured() -> bytes:
    return pickle.dumps(np.zeros(2, [("a", "u1"), ("b", "f4")]), 4)


def sized(shape: bytes) -> bytes:
    """An array of one byte that claims a shape."""
    head = b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01" + shape
    return (
        head
        + b"cnumpy\ndtype\nU\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x01ctb."
    )


X, Y = "train-images-idx3-ubyte.gz", "train-labels-idx1-ubyte.gz"
CASES = [
    Case("mnist-as-it-should-be", put("mnist", lambda: GOOD_IDX), Accepted([*range(10), *range(10)])),
    Case(
        "cifar-as-it-should-be",
        put("cifar10", lambda: {"cifar-10-python.tar.gz": tar_of(BATCHES)}),
        Accepted([0, 1, 2, 3] * 5),
    ),
    mnist("idx-ends-early", X, lambda: gzip.compress(idx(IMAGES)[:-9]), "15680 values announced, 15671 of them found"),
    mnist("idx-gzip-cut", X, lambda: GOOD_IDX[X][:-9], "not readable as gzip"),
    mnist("idx-no-gzip", X, lambda: b"\x1f\x8bnothing", "not readable as gzip"),
    mnist("idx-of-floats", X, lambda: gzip.compress(idx(IMAGES, magic=b"\0\0\x0d\3")), "not an IDX file of bytes in 3"),
    mnist("idx-of-four-dimensions", X, lambda: gzip.compress(idx(IMAGES[..., None])), "not an IDX file of bytes in 3"),
    mnist("idx-labels-for-images", X, lambda: GOOD_IDX[Y], "not an IDX file of bytes in 3"),
    mnist(
        "idx-of-exabytes",
        X,
        lambda: gzip.compress(idx(IMAGES, sizes=(2**32 - 1,) * 3)),
        "an array of .* announced, allowed",
    ),
    mnist("idx-of-nothing", X, lambda: gzip.compress(idx(IMAGES[:0])), "an array of .* announced, allowed"),
    mnist(
        "idx-bomb", X, lambda: gzip.compress(idx(IMAGES) + bytes(40_000_000), 1), "15680 values announced, more found"
    ),
    mnist("idx-fewer-labels", Y, lambda: gzip.compress(idx(LABELS[:19])), "19 labels found for 20 images"),
    mnist("idx-label-out-of-range", Y, lambda: gzip.compress(idx(LABELS + 1)), "labels 1 to 10 found, allowed: 0 to 9"),
    cifar("cifar-batch-absent", lambda: {"data_batch_3": None}, "not CIFAR's layout: data_batch_3 is absent"),
    cifar(
        "cifar-batch-a-list",
        lambda: {"data_batch_3": pickle.dumps([1])},
        "not CIFAR's layout: data_batch_3 is absent or no",
    ),
    cifar(
        "cifar-other-shape",
        lambda: {"test_batch": batch(np.zeros((4, 3073), np.uint8))},
        "test_batch: not CIFAR's layout: data",
    ),
    cifar("cifar-floats", lambda: {"test_batch": batch(np.zeros((4, 3072)))}, "test_batch: not CIFAR's layout: data"),
    cifar("cifar-fewer-labels", lambda: {"test_batch": batch(labels=[0])}, "test_batch: 1 labels found for 4 images"),
    cifar(
        "cifar-label-out-of-range",
        lambda: {"test_batch": batch(labels=[0, 1, 2, 10])},
        "test_batch: not CIFAR's layout: labels",
    ),
    cifar(
        "cifar-label-as-text", lambda: {"test_batch": batch(labels=["a"] * 4)}, "test_batch: not CIFAR's layout: labels"
    ),
    cifar(
        "cifar-two-classes-of-one-name",
        lambda: {"batches.meta": pickle.dumps({b"label_names": [b"a"] * 9})},
        "batches.meta: 1 diff",
    ),
    cifar(
        "cifar-names-of-numbers",
        lambda: {"batches.meta": pickle.dumps({b"label_names": [3]})},
        "not CIFAR's layout: batches.meta",
    ),
    cifar(
        "cifar-array-of-objects",
        lambda: {"test_batch": object_array()},
        "test_batch: not a readable pickle .*not allowed",
    ),
    svhn(
        "mat-other-side",
        lambda: mat(np.zeros((28, 28, 3, 20), np.uint8), np.uint8([[1]] * 20)),
        r"X is uint8 \[28, 28, 3, 20\]",
    ),
    svhn("mat-floats", lambda: mat(np.zeros((32, 32, 3, 20)), np.uint8([[1]] * 20)), "X is double"),
    svhn("mat-objects", lambda: mat(np.array([{"a": 1}], object), np.uint8([[1]])), "X is cell"),
    svhn(
        "mat-fewer-labels",
        lambda: mat(np.zeros((32, 32, 3, 20), np.uint8), np.uint8([[1]] * 19)),
        r"y is \[19, 1\], allowed: \[20",
    ),
    svhn(
        "mat-label-out-of-range",
        lambda: mat(np.zeros((32, 32, 3, 2), np.uint8), np.uint8([[1], [11]])),
        "labels 0 to 10 found",
    ),
    svhn("mat-without-labels", lambda: mat(np.zeros((32, 32, 3, 2), np.uint8), 1), r"y is \[1, 1\], allowed"),
    svhn("mat-cut", lambda: GOOD_MAT[:200], "y is absent"),
    svhn(
        "mat-of-version-7.3",
        lambda: b"MATLAB 7.3 MAT-file" + b" " * 105 + b"\0\2IM" + b"\x89HDF",
        "not readable as MATLAB's",
    ),
    gtsrb("gtsrb-no-table", lambda: zip_of({"x": b""}), r"GT\.zip: GT-final_test\.csv cannot be read \(KeyError"),
    gtsrb("gtsrb-no-zip", lambda: b"PK", r"GT\.zip: GT-final_test\.csv cannot be read \(BadZipFile"),
    gtsrb("gtsrb-no-column", lambda: table("00000.ppm;9", head="Filename;Width"), "has no column ClassId"),
    gtsrb(
        "gtsrb-strange-class", lambda: table("00000.ppm;9;7"), r"line 2: Filename '00000\.ppm' and ClassId '7' found"
    ),
    gtsrb("gtsrb-class-as-text", lambda: table("00000.ppm;9;stop"), "line 2: .* ClassId 'stop' found"),
    gtsrb("gtsrb-a-file-twice", lambda: table("00000.ppm;9;0", "00000.ppm;9;1"), "names 1 files in 2 lines"),
    gtsrb(
        "gtsrb-file-that-is-not-there",
        lambda: table("00000.ppm;9;0", "00009.ppm;9;1"),
        r"00009\.ppm \(absent from GTSRB_Final",
    ),
    gtsrb(
        "gtsrb-table-not-utf-8",
        lambda: zip_of({"GT-final_test.csv": b"Filename;ClassId\n\xff;0"}),
        "cannot be read .Unicode",
    ),
    gtsrb("gtsrb-table-bomb", lambda: zip_of({"GT-final_test.csv": bytes(17 << 20)}), "is larger than 16 MiB"),
]


@pytest.mark.parametrize("case", CASES, ids=str)
def test_case(case: Case, tmp_path: Path) -> None:
    knock(prepare, case, tmp_path)


class Calls:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("canary",)


PICKLES: dict[str, tuple[Callable[[], bytes], str]] = {
    "a-call": (lambda: pickle.dumps(Calls()), "posix.mkdir"),
    "a-class": (lambda: pickle.dumps(Path), "pathlib"),
    "a-name-with-a-control-character": (lambda: b"\x80\x02c\0os\nsystem\n.", r"asks for \\x00os\.system"),
    "array-of-objects": (object_array, "not allowed"),
    "array-of-fields": (structured, "structured"),
    "array-of-objects-as-numpy-writes-it": (lambda: pickle.dumps(np.array([{}], object), 4), "not allowed"),
    "array-of-dates": (lambda: pickle.dumps(np.zeros(2, "M8[s]"), 4), "arrays of"),
    "array-of-text": (lambda: pickle.dumps(np.array(["a"]), 4), "not allowed"),
    "array-larger-than-its-bytes": (lambda: sized(b"J\xff\xff\xff\x7f\x85"), "pickle"),
    "array-of-negative-size": (lambda: sized(b"J\xff\xff\xff\xff\x85"), "pickle"),
    "array-of-overflowing-size": (lambda: sized(b"J\xff\xff\xff\x7fJ\xff\xff\xff\x7fJ\xff\xff\xff\x7f\x87"), "pickle"),
    "array-state-of-nothing": (
        lambda: b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87RNb.",
        "pickle",
    ),
    "memory-for-a-byte-array": (lambda: b"\x80\x05\x96" + struct.pack("<Q", 1 << 33) + b".", "pickle"),
    "memory-for-remembered-values": (lambda: b"\x80\x02Nr\xff\xff\xff\x7f.", "remembers value 2147483647"),
    "bytes-longer-than-the-file": (lambda: b"\x80\x04\x8e" + struct.pack("<Q", 1 << 40) + b"abc.", "pickle"),
    "persistent-reference": (lambda: b"\x80\x02U\x01xQ.", "BINPERSID"),
    "extension": (lambda: b"\x80\x02\x82\x01.", "EXT1"),
    "old-instance": (lambda: b"(S'x'\nios\nsystem\n.", "INST"),
    "deep": (lambda: b"\x80\x02" + b"]" * 100_000 + b"a" * 99_999 + b".", ""),
    "empty": (lambda: b"", "pickle"),
}


def load_all(folder: Path) -> list[str]:
    """The pickles of the table that are loaded, or refused with another reason than the table's."""
    wrong = []
    for name, (make, reason) in PICKLES.items():
        try:
            load_plain(make())
            wrong += [name] if reason else []
        except ValueError as error:
            wrong += [] if re.search(reason, str(error)) else [f"{name}: {error}"]
    return wrong


def test_pickles_that_ask_for_more(tmp_path: Path) -> None:
    knock(load_all, Case("pickles", lambda folder: None, Accepted([])), tmp_path)
