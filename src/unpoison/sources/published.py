"""Published data sets by name, from the files that their publishers offer, under torchvision's names for them.

Files are looked for in one folder, and downloaded to it where the network allows. Each must have its published digest, or
hold what the published one holds: a compressed file that somebody packed anew, or unpacked, has other bytes.
"""

from __future__ import annotations

import hashlib
import socket
import urllib.error
import zlib
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import torch

from ..core.errors import ParameterError, UserError
from .folder import open_folder
from .formats import cifar, files_named, gtsrb, idx, imagenette, svhn, unpacked
from .source import Source

TIMEOUT = 60.0  # seconds without a byte, after which there is no network
_MOST_CONTENT = 256 << 20  # bytes of a compressed file's content; the largest one that is published has 47 MB


@dataclass(frozen=True)
class File:
    """A publisher's file.

    Attributes:
        name: its name.
        url: its address.
        digest: its digest, `sha256:…` or `md5:…`.
        content: digest of what it holds, by the name within it; the name is empty where it is one compressed file. Empty
            where no digests are published.
        folder: name of the folder that it unpacks to, if `content` can vouch for that.
    """

    name: str
    url: str
    digest: str
    content: Mapping[str, str] = field(default_factory=dict)
    folder: str = ""

    def path(self, root: Path) -> Path | None:
        """The file in `root`, packed or unpacked; None where there is none."""
        if (root / self.name).is_file():
            return root / self.name
        unzipped = root / self.name.removesuffix(".gz")
        if self.content and unzipped.is_file():
            return unzipped
        return root / self.folder if self.folder and (root / self.folder).is_dir() else None


@dataclass(frozen=True)
class Published:
    """A published data set.

    Attributes:
        files: the publisher's files, none where there is no public address.
        open: paths of the files, in the same order, or else of the data set's folder, to the source.
        licence: terms of use.
        classes: number of classes.
        train: number of training images.
        test: number of test images.
    """

    files: tuple[File, ...]
    open: Callable[..., Source]
    licence: str
    classes: int
    train: int
    test: int


def open_published(name: str, root: Path) -> Source:
    """The source of a data set in `PUBLISHED`.

    Args:
        name: a key of `PUBLISHED`.
        root: folder of its files.

    Raises:
        UserError: a file is missing and cannot be downloaded, or is not the published one.
    """
    entry = PUBLISHED[name]
    missing = [file for file in entry.files if file.path(root) is None]
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
    """Path of a file that has the published digest, or holds what the published one holds."""
    path = file.path(root) or root / file.name
    kind, digest = file.digest.split(":")
    actual = ""
    if path.is_file():
        with path.open("rb") as stream:
            actual = hashlib.file_digest(stream, kind).hexdigest()
    if actual == digest or (file.content and _holds(path, file.content)):
        return path
    found = f"{kind} {actual[:16]}… found, the published file of {name} has {digest[:16]}…" if actual else "found"
    contents = ", and what it holds is not what that one holds" if file.content else ""
    raise UserError(
        f"{path}: {found}{contents}; delete it and run again, or put the file from {file.url} there; images of another "
        "origin are read with data.name: folder"
    )


def _holds(path: Path, content: Mapping[str, str]) -> bool:
    """Whether a file or folder holds every part of `content`, by digest."""
    try:
        if "" in content:
            kind, digest = content[""].split(":")
            return _stream_digest(path, kind) == digest
        kinds = {name: digest.split(":")[0] for name, digest in content.items()}
        found = {
            name: f"{kinds[name]}:{hashlib.new(kinds[name], data).hexdigest()}"
            for name, data in files_named(path, tuple(content))
        }
    except (UserError, OSError, EOFError, zlib.error):
        return False
    return found == dict(content)


def _stream_digest(path: Path, kind: str) -> str:
    """Digest of a compressed file's content, "" where that is larger than any published one's."""
    sha, left = hashlib.new(kind), _MOST_CONTENT
    with unpacked(path) as stream:
        while block := stream.read(1 << 20):
            left -= len(block)
            if left < 0:
                return ""
            sha.update(block)
    return sha.hexdigest()


_KRIZHEVSKY = "https://www.cs.toronto.edu/~kriz/"
_MNIST = "https://ossci-datasets.s3.amazonaws.com/mnist/"
_FASHION = "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/"
_SVHN = "http://ufldl.stanford.edu/housenumbers/"
_GTSRB = "https://sid.erda.dk/public/archives/daaeac0d7ce1152aea9b61d9f1e19370/"
_FAST_AI = "https://s3.amazonaws.com/fast-ai-imageclas/"
_CLOTHES = ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot")


def _idx_files(base: str, *files: tuple[str, str, str]) -> tuple[File, ...]:
    """Compressed files of (name, MD5, MD5 of the content) at one address."""
    return tuple(File(name, base + name, f"md5:{packed}", {"": f"md5:{content}"}) for name, packed, content in files)


def _files(base: str, *files: tuple[str, str]) -> tuple[File, ...]:
    """Files of (name, MD5) at one address, of whose content no digests are published."""
    return tuple(File(name, base + name, f"md5:{digest}") for name, digest in files)


PUBLISHED: dict[str, Published] = {
    "cifar10": Published(
        (
            File(
                "cifar-10-python.tar.gz",
                _KRIZHEVSKY + "cifar-10-python.tar.gz",
                "sha256:6d958be074577803d12ecdefd02955f39262c83c16fe9348329d7fe0b5c001ce",
                {
                    "data_batch_1": "md5:c99cafc152244af753f735de768cd75f",
                    "data_batch_2": "md5:d4bba439e000b95fd0a9bffe97cbabec",
                    "data_batch_3": "md5:54ebc095f3ab1f0389bbae665268c751",
                    "data_batch_4": "md5:634d18415352ddfa80567beed471001a",
                    "data_batch_5": "md5:482c414d41f54cd18b22e5b47cb7c3cb",
                    "test_batch": "md5:40351d587109b95175f43aff81a1287e",
                    "batches.meta": "md5:5ff9c542aee3614f3951f8cda6e48888",
                },
                "cifar-10-batches-py",
            ),
        ),
        cifar,
        "none stated (Krizhevsky 2009)",
        classes=10,
        train=50_000,
        test=10_000,
    ),
    "cifar100": Published(
        (
            File(
                "cifar-100-python.tar.gz",
                _KRIZHEVSKY + "cifar-100-python.tar.gz",
                "sha256:85cd44d02ba6437773c5bbd22e183051d648de2e7d6b014e1ef29b855ba677a7",
                {
                    "train": "md5:16019d7e3df5f24257cddd939b257f8d",
                    "test": "md5:f0ef6b0ae62326f3e7ffdfab6717acfc",
                    "meta": "md5:7973b15100ade9c7d40fb424638fde48",
                },
                "cifar-100-python",
            ),
        ),
        cifar,
        "none stated (Krizhevsky 2009)",
        classes=100,
        train=50_000,
        test=10_000,
    ),
    "mnist": Published(
        _idx_files(
            _MNIST,
            ("train-images-idx3-ubyte.gz", "f68b3c2dcbeaaa9fbdd348bbdeb94873", "6bbc9ace898e44ae57da46a324031adb"),
            ("train-labels-idx1-ubyte.gz", "d53e105ee54ea40749a09fcbcd1e9432", "a25bea736e30d166cdddb491f175f624"),
            ("t10k-images-idx3-ubyte.gz", "9fb629c4189551a2d022fa330f9573f3", "2646ac647ad5339dbf082846283269ea"),
            ("t10k-labels-idx1-ubyte.gz", "ec29112dd5afa0611ce80d1b7f02629c", "27ae3e4e09519cfbb04c329615203637"),
        ),
        idx(tuple("0123456789")),
        "CC BY-SA 3.0 (LeCun et al. 1998)",
        classes=10,
        train=60_000,
        test=10_000,
    ),
    "fashion_mnist": Published(
        _idx_files(
            _FASHION,
            ("train-images-idx3-ubyte.gz", "8d4fb7e6c68d591d4c3dfef9ec88bf0d", "f4a8712d7a061bf5bd6d2ca38dc4d50a"),
            ("train-labels-idx1-ubyte.gz", "25c81989df183df01b3e8a0aad5dffbe", "9018921c3c673c538a1fc5bad174d6f9"),
            ("t10k-images-idx3-ubyte.gz", "bef4ecab320f06d8554ea6380940ec79", "8181f5470baa50b63fa0f6fddb340f0a"),
            ("t10k-labels-idx1-ubyte.gz", "bb300cfdad3c16e7a12a480ee83cd310", "15d484375f8d13e6eb1aabb0c3f46965"),
        ),
        idx(_CLOTHES),
        "MIT (Xiao et al. 2017)",
        classes=10,
        train=60_000,
        test=10_000,
    ),
    "svhn": Published(
        _files(
            _SVHN,
            ("train_32x32.mat", "e26dedcc434d2e4c54c9b2d4a06d8373"),
            ("test_32x32.mat", "eb5a983be6a315427106f1b164d9cef3"),
        ),
        svhn,
        "non-commercial use (Netzer et al. 2011)",
        classes=10,
        train=73_257,
        test=26_032,
    ),
    "gtsrb": Published(
        _files(
            _GTSRB,
            ("GTSRB-Training_fixed.zip", "513f3c79a4c5141765e10e952eaa2478"),
            ("GTSRB_Final_Test_Images.zip", "c7e4e6327067d32654124b0fe9e82185"),
            ("GTSRB_Final_Test_GT.zip", "fe31e9c9270bbcd7b84b7f21a9d9d9e5"),
        ),
        gtsrb,
        "CC0 (Stallkamp et al. 2012)",
        classes=43,
        train=26_640,
        test=12_630,
    ),
    "imagenette": Published(
        _files(_FAST_AI, ("imagenette2-320.tgz", "3df6f0d01a2c9592104656642f5e78a3")),
        imagenette,
        "as ImageNet's; selection Apache 2.0 (fast.ai)",
        classes=10,
        train=9_469,
        test=3_925,
    ),
    # No public address: the folder with train/WNID and val/WNID that torchvision and others make of the archives.
    "imagenet": Published(
        (),
        open_folder,
        "non-commercial research (Russakovsky et al. 2015)",
        classes=1000,
        train=1_281_167,
        test=50_000,
    ),
}
