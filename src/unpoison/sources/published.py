"""Published data sets by name, from the files that their publishers offer, under torchvision's names for them.

Files are looked for in one folder, and downloaded to it where the network allows. Each must have its published digest.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import io
import socket
import tarfile
import urllib.error
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch

from ..core.arrays import Images, IntArray
from ..core.errors import ParameterError, UserError
from .containers import read_members
from .folder import open_folder
from .pickles import load_plain
from .source import Rows, Source

TIMEOUT = 60.0  # seconds without a byte, after which there is no network
Arrays = dict[str, tuple[Images, IntArray]]


@dataclass(frozen=True)
class File:
    """A publisher's file: its name, its address, and its digest (`sha256:…` or `md5:…`)."""

    name: str
    url: str
    digest: str


@dataclass(frozen=True)
class Published:
    """A published data set.

    Attributes:
        files: the publisher's files, none where there is no public address.
        open: paths of the files, in the same order, or else of the data set's folder, to the source.
        licence: terms of use.
    """

    files: tuple[File, ...]
    open: Callable[..., Source]
    licence: str


def open_published(name: str, root: Path) -> Source:
    """The source of a data set in `PUBLISHED`.

    Args:
        name: a key of `PUBLISHED`.
        root: folder of its files.

    Raises:
        UserError: a file is missing and cannot be downloaded, or is not the published one.
    """
    entry = PUBLISHED[name]
    missing = [file for file in entry.files if not (root / file.name).is_file()]
    if missing:
        _download(name, missing, root)
    # All are checked, those that were there before as well: a download that broke off has the right name.
    paths = [_checked(name, file, root) for file in entry.files]
    about = {"name": name, "source": entry.files[0].url if entry.files else root.name, "licence": entry.licence}
    return replace(entry.open(*paths) if paths else entry.open(root), about=about)


def _download(name: str, files: list[File], root: Path) -> None:
    """Fetch files into `root`, or name those to put there by hand."""
    root.mkdir(parents=True, exist_ok=True)
    # torch's downloader has no limit of its own, so the process's default is set for as long as it works.
    patience = socket.getdefaulttimeout()
    socket.setdefaulttimeout(TIMEOUT)
    try:
        for file in files:
            print(f"downloading {file.url}", flush=True)
            torch.hub.download_url_to_file(file.url, str(root / file.name))
    except (urllib.error.URLError, OSError) as error:
        wanted = [file.url for file in files if not (root / file.name).is_file()]
        raise ParameterError(
            f"name: {name}: {wanted[0].rsplit('/', 1)[1]} is not in {root} and cannot be downloaded ({error}); put there, "
            f"by hand: {', '.join(wanted)}"
        ) from None
    finally:
        socket.setdefaulttimeout(patience)


def _checked(name: str, file: File, root: Path) -> Path:
    """Path of a file that has the published digest."""
    path = root / file.name
    kind, digest = file.digest.split(":")
    with path.open("rb") as stream:
        actual = hashlib.file_digest(stream, kind).hexdigest()
    if actual != digest:
        raise UserError(
            f"{path}: {kind} {actual[:16]}… found, the published file of {name} has {digest[:16]}…; delete it and run again, "
            f"or put the file from {file.url} there"
        )
    return path


def _in_memory(classes: tuple[str, ...], arrays: Arrays) -> Source:
    """A source of images and labels by part, for sets that fit in memory; samples are named by part and number."""

    def read(rows: Rows) -> Iterator[tuple[str, int, bytes | Images | str]]:
        for part, part_rows in rows.items():
            for row in part_rows:
                yield part, int(row), arrays[part][0][row]

    labels = {part: part_labels.astype(np.int64) for part, (_, part_labels) in arrays.items()}
    names = {part: [f"{part}/{row:05d}" for row in range(len(part_labels))] for part, part_labels in labels.items()}
    return Source(classes, labels, names, read, {})


# The names in both archives; nothing else is unpickled.
_CIFAR_FILES = (
    *(f"data_batch_{number}" for number in range(1, 6)),
    "test_batch",
    "batches.meta",
    "train",
    "test",
    "meta",
)


def _cifar(archive: Path) -> Source:
    """CIFAR-10 and CIFAR-100: pickled dictionaries of uint8 [n, 3072], channel by channel."""
    # Read in one pass, the gzip stream's own order, and sorted out afterwards.
    batches = {}
    with tarfile.open(archive) as tar:
        for member in tar:
            name = member.name.split("/")[-1]
            if name in _CIFAR_FILES and member.isreg() and (file := tar.extractfile(member)):
                try:
                    batches[name] = load_plain(file.read())
                except ValueError as error:
                    raise UserError(f"{archive}: {member.name}: {error}") from None
    # CIFAR-100 has one file per part and two kinds of labels, of which the 100 classes are the fine ones.
    hundred = "train" in batches
    key, meta = (b"fine_labels", batches.get("meta")) if hundred else (b"labels", batches.get("batches.meta"))
    parts = {"train": ["train"], "test": ["test"]}
    if not hundred:
        parts = {"train": [f"data_batch_{number}" for number in range(1, 6)], "test": ["test_batch"]}
    try:
        names = meta[b"fine_label_names" if hundred else b"label_names"]  # type: ignore[index]
        arrays = {
            part: (
                np.concatenate([batches[file][b"data"] for file in files]).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1),
                np.concatenate([batches[file][key] for file in files]),
            )
            for part, files in parts.items()
        }
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{archive}: not CIFAR's layout ({error!r})") from None
    return _in_memory(tuple(name.decode() for name in names), arrays)


def _idx(classes: tuple[str, ...]) -> Callable[..., Source]:
    """Reader of MNIST and its relatives: gzipped IDX files, with big-endian sizes after a magic number."""

    def read(path: Path) -> Images:
        # The magic number: two zeros, 8 for unsigned bytes, and the number of dimensions; then a size for each.
        data = gzip.decompress(path.read_bytes())
        if data[:3] != b"\0\0\x08":
            raise UserError(f"{path}: not an IDX file of bytes")
        sizes = np.frombuffer(data, ">u4", count=data[3], offset=4)
        return np.frombuffer(data, np.uint8, offset=4 + 4 * data[3]).reshape(sizes.astype(int))

    def source(train_images: Path, train_labels: Path, test_images: Path, test_labels: Path) -> Source:
        train = read(train_images)[..., None], read(train_labels)
        test = read(test_images)[..., None], read(test_labels)
        return _in_memory(classes, {"train": train, "test": test})  # type: ignore[dict-item]

    return source


def _svhn(train: Path, test: Path) -> Source:
    """SVHN's cropped house numbers: MATLAB arrays [32, 32, 3, n]; the digit 0 has the label 10."""
    from scipy.io import loadmat

    arrays = {}
    for part, path in (("train", train), ("test", test)):
        content = loadmat(path, variable_names=("X", "y"))
        arrays[part] = content["X"].transpose(3, 0, 1, 2), content["y"].ravel().astype(np.int64) % 10
    return _in_memory(tuple("0123456789"), arrays)


def _gtsrb(train: Path, test: Path, truth: Path) -> Source:
    """GTSRB's traffic signs: PPM files of many sizes in zips; the test labels come in a file of their own."""
    # The training zip has a folder per class. The test zip has none, so the order of its samples is that of the table.
    source = open_folder(train)
    with zipfile.ZipFile(truth) as archive:
        text = archive.read("GT-final_test.csv").decode("utf-8")
    rows = list(csv.DictReader(io.StringIO(text), delimiter=";"))
    names = [f"GTSRB/Final_Test/Images/{row['Filename']}" for row in rows]
    labels = np.array([source.classes.index(f"{int(row['ClassId']):05d}") for row in rows], np.int64)

    def read(wanted: Rows) -> Iterator[tuple[str, int, bytes | Images | str]]:
        yield from source.read({part: rows for part, rows in wanted.items() if part == "train"})
        place = {names[row]: int(row) for row in wanted.get("test", [])}
        for name, content in read_members(test, place.keys()):
            yield "test", place[name], content

    return replace(source, labels={**source.labels, "test": labels}, names={**source.names, "test": names}, read=read)


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


def _imagenette(archive: Path) -> Source:
    """fast.ai's ten classes of ImageNet: folders by WordNet id, given their English names."""
    source = open_folder(archive)
    return replace(source, classes=tuple(IMAGENETTE.get(name, name) for name in source.classes))


_KRIZHEVSKY = "https://www.cs.toronto.edu/~kriz/"
_MNIST = "https://ossci-datasets.s3.amazonaws.com/mnist/"
_FASHION = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
_SVHN = "http://ufldl.stanford.edu/housenumbers/"
_GTSRB = "https://sid.erda.dk/public/archives/daaeac0d7ce1152aea9b61d9f1e19370/"
_FAST_AI = "https://s3.amazonaws.com/fast-ai-imageclas/"
_CLOTHES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


def _files(base: str, *files: tuple[str, str]) -> tuple[File, ...]:
    """Files of (name, digest) at one address."""
    return tuple(File(name, base + name, digest) for name, digest in files)


PUBLISHED: dict[str, Published] = {
    "cifar10": Published(
        _files(
            _KRIZHEVSKY,
            ("cifar-10-python.tar.gz", "sha256:6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce"),
        ),
        _cifar,
        "none stated (Krizhevsky 2009)",
    ),
    "cifar100": Published(
        _files(
            _KRIZHEVSKY,
            ("cifar-100-python.tar.gz", "sha256:85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7"),
        ),
        _cifar,
        "none stated (Krizhevsky 2009)",
    ),
    "mnist": Published(
        _files(
            _MNIST,
            ("train-images-idx3-ubyte.gz", "md5:f68b3c2dcbeaaa9fbdd348bbdeb94873"),
            ("train-labels-idx1-ubyte.gz", "md5:d53e105ee54ea40749a09fcbcd1e9432"),
            ("t10k-images-idx3-ubyte.gz", "md5:9fb629c4189551a2d022fa330f9573f3"),
            ("t10k-labels-idx1-ubyte.gz", "md5:ec29112dd5afa0611ce80d1b7f02629c"),
        ),
        _idx(tuple("0123456789")),
        "CC BY-SA 3.0 (LeCun et al. 1998)",
    ),
    "fashion_mnist": Published(
        _files(
            _FASHION,
            ("train-images-idx3-ubyte.gz", "md5:8d4fb7e6c68d591d4c3dfef9ec88bf0d"),
            ("train-labels-idx1-ubyte.gz", "md5:25c81989df183df01b3e8a0aad5dffbe"),
            ("t10k-images-idx3-ubyte.gz", "md5:bef4ecab320f06d8554ea6380940ec79"),
            ("t10k-labels-idx1-ubyte.gz", "md5:bb300cfdad3c16e7a12a480ee83cd310"),
        ),
        _idx(_CLOTHES),
        "MIT (Xiao et al. 2017)",
    ),
    "svhn": Published(
        _files(
            _SVHN,
            ("train_32x32.mat", "md5:e26dedcc434d2e4c54c9b2d4a06d8373"),
            ("test_32x32.mat", "md5:eb5a983be6a315427106f1b164d9cef3"),
        ),
        _svhn,
        "non-commercial use (Netzer et al. 2011)",
    ),
    "gtsrb": Published(
        _files(
            _GTSRB,
            ("GTSRB-Training_fixed.zip", "md5:513f3c79a4c5141765e10e952eaa2478"),
            ("GTSRB_Final_Test_Images.zip", "md5:c7e4e6327067d32654124b0fe9e82185"),
            ("GTSRB_Final_Test_GT.zip", "md5:fe31e9c9270bbcd7b84b7f21a9d9d9e5"),
        ),
        _gtsrb,
        "CC0 (Stallkamp et al. 2012)",
    ),
    "imagenette": Published(
        _files(_FAST_AI, ("imagenette2-320.tgz", "md5:3df6f0d01a2c9592104656642f5e78a3")),
        _imagenette,
        "as ImageNet's; selection Apache 2.0 (fast.ai)",
    ),
    # No public address: the folder with train/WNID and val/WNID that torchvision and others make of the archives.
    "imagenet": Published((), open_folder, "non-commercial research (Russakovsky et al. 2015)"),
}
