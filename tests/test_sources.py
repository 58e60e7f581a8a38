"""Published sets from files in their publishers' formats, the restricted reader, splits, sets larger than memory."""

from __future__ import annotations

import gzip
import hashlib
import io
import os
import pickle
import tarfile
import urllib.error
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pytest
import torch
from PIL import Image
from scipy.io import savemat

from unpoison.core.errors import UserError
from unpoison.data.store import open_split, read_about
from unpoison.sources.build import BuildSettings, build_base
from unpoison.sources.pickles import load_plain
from unpoison.sources.published import PUBLISHED, File, open_published
from unpoison.sources.splits import SplitSettings

RNG = np.random.default_rng(0)


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    tar.addfile(info, io.BytesIO(content))


def pixels(n: int, *shape: int) -> np.ndarray:
    return RNG.integers(0, 256, (n, *shape), dtype=np.uint8)


def png(image: np.ndarray, kind: str = "PNG") -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(image).save(buffer, kind)
    return buffer.getvalue()


def make_cifar(root: Path, *, hundred: bool = False) -> np.ndarray:
    """A CIFAR archive with 4 images per file; gives the training images [n, 32, 32, 3]."""
    folder = "cifar-100-python" if hundred else "cifar-10-batches-py"
    files = ["train", "test"] if hundred else [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    meta = {b"fine_label_names" if hundred else b"label_names": [f"class {i}".encode() for i in range(10)]}
    rows = {file: pixels(4, 3072) for file in files}
    with tarfile.open(root / f"cifar-10{'0' * hundred}-python.tar.gz", "w:gz") as tar:
        add(tar, f"{folder}/{'meta' if hundred else 'batches.meta'}", pickle.dumps(meta, 4))
        add(tar, f"{folder}/file.txt~", b"no pickle")
        for file in files:
            content = {b"data": rows[file], b"fine_labels" if hundred else b"labels": [0, 1, 2, 3]}
            add(tar, f"{folder}/{file}", pickle.dumps(content, 4))
    train = [rows[file] for file in files if not file.startswith("test")]
    return np.concatenate(train).reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1)


def make_idx(root: Path) -> np.ndarray:
    images = pixels(20, 28, 28)
    for part, values in (("train", images), ("t10k", images[:5])):
        count = np.array([len(values)], ">u4").tobytes()
        header = bytes([0, 0, 8, 3]) + count + np.array([28, 28], ">u4").tobytes()
        (root / f"{part}-images-idx3-ubyte.gz").write_bytes(gzip.compress(header + values.tobytes()))
        labels = bytes([0, 0, 8, 1]) + count + (np.arange(len(values)) % 10).astype("u1").tobytes()
        (root / f"{part}-labels-idx1-ubyte.gz").write_bytes(gzip.compress(labels))
    return images[..., None]


def make_svhn(root: Path) -> np.ndarray:
    images = pixels(20, 32, 32, 3)
    for part in ("train", "test"):
        labels = np.where(np.arange(20) % 10 == 0, 10, np.arange(20) % 10)[:, None]
        savemat(root / f"{part}_32x32.mat", {"X": images.transpose(1, 2, 3, 0), "y": labels.astype("u1")})
    return images


def make_gtsrb(root: Path) -> np.ndarray:
    images = pixels(6, 20, 20, 3)
    with zipfile.ZipFile(root / "GTSRB-Training_fixed.zip", "w") as archive:
        for i, image in enumerate(images):
            archive.writestr(f"GTSRB/Training/{i % 2:05d}/{i:05d}.ppm", png(image, "PPM"))
            archive.writestr(f"GTSRB/Training/{i % 2:05d}/GT-{i:05d}.csv", "x")
    with zipfile.ZipFile(root / "GTSRB_Final_Test_Images.zip", "w") as archive:
        for i in range(4):
            archive.writestr(f"GTSRB/Final_Test/Images/{i:05d}.ppm", png(images[i], "PPM"))
    with zipfile.ZipFile(root / "GTSRB_Final_Test_GT.zip", "w") as archive:
        lines = ["Filename;Width;Height;ClassId", *(f"{i:05d}.ppm;20;20;{i % 2}" for i in range(4))]
        archive.writestr("GT-final_test.csv", "\n".join(lines))
    return images[[0, 2, 4, 1, 3, 5]]  # by class


def make_imagenette(root: Path) -> np.ndarray:
    images = pixels(4, 40, 40, 3)
    with tarfile.open(root / "imagenette2-320.tgz", "w:gz") as tar:
        for part in ("train", "val"):
            for i, image in enumerate(images):
                add(tar, f"imagenette2-320/{part}/{('n01440764', 'n03888257')[i // 2]}/{i}.JPEG", png(image))
    return images


def make_imagenet(root: Path) -> np.ndarray:
    images = pixels(4, 40, 40, 3)
    for part in ("train", "val"):
        for i, image in enumerate(images):
            path = root / part / ("n01440764", "n03888257")[i // 2] / f"{i}.JPEG"
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(png(image))
    return images


class Row(NamedTuple):
    """A published set: what makes its files and gives the training images, and what is to come of them."""

    make: Callable[[Path], np.ndarray]
    side: int
    classes: int
    count: int
    labels: tuple[int, ...]


SETS = {
    "cifar10": Row(make_cifar, 32, 10, 20, (0, 1, 2, 3) * 5),
    "cifar100": Row(lambda root: make_cifar(root, hundred=True), 32, 10, 4, (0, 1, 2, 3)),
    "mnist": Row(make_idx, 28, 10, 20, (*range(10), *range(10))),
    "fashion_mnist": Row(make_idx, 28, 10, 20, (*range(10), *range(10))),
    "svhn": Row(make_svhn, 32, 10, 20, (*range(10), *range(10))),
    "gtsrb": Row(make_gtsrb, 20, 2, 6, (0, 0, 0, 1, 1, 1)),
    "imagenette": Row(make_imagenette, 40, 2, 4, (0, 0, 1, 1)),
    "imagenet": Row(make_imagenet, 40, 2, 4, (0, 0, 1, 1)),
}


def with_digests(name: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make the files that lie in `root` the published ones."""
    files = tuple(
        File(file.name, file.url, f"sha256:{hashlib.sha256((root / file.name).read_bytes()).hexdigest()}")
        for file in PUBLISHED[name].files
    )
    monkeypatch.setitem(PUBLISHED, name, replace(PUBLISHED[name], files=files))


def test_every_published_set_has_a_row() -> None:
    assert set(SETS) == set(PUBLISHED)


@pytest.mark.parametrize("name", SETS)
def test_published_set_from_its_files(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    row, root = SETS[name], tmp_path / "files"
    root.mkdir()
    wanted = row.make(root)
    with_digests(name, root, monkeypatch)
    source = open_published(name, root)
    build_base(
        source, tmp_path / "base", SplitSettings(reserve=0, public=0), BuildSettings(), defects=tmp_path / "d.txt"
    )
    train = open_split(tmp_path / "base", "train")
    assert len(train.classes) == row.classes
    assert train.image_size == (row.side, row.side)
    assert len(train) == row.count
    assert (train.gather(np.arange(row.count)) == wanted).all()
    assert train.labels.tolist() == list(row.labels)
    assert len(open_split(tmp_path / "base", "test")) > 0
    about = read_about(tmp_path / "base")
    assert about["name"] == name
    assert about["licence"] == PUBLISHED[name].licence
    if name == "imagenette":
        assert train.classes == ("tench", "parachute")


@pytest.mark.parametrize("name", [name for name in PUBLISHED if PUBLISHED[name].files])
def test_without_a_network_the_file_and_its_place_are_named(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(url: str, path: str) -> None:
        raise urllib.error.URLError("no route")

    monkeypatch.setattr(torch.hub, "download_url_to_file", refuse)
    files = PUBLISHED[name].files
    with pytest.raises(UserError) as caught:
        open_published(name, tmp_path)
    message = str(caught.value)
    assert f"name: {name}: {files[0].name} is not in {tmp_path} and cannot be downloaded (<urlopen error no" in message
    assert all(file.url in message for file in files)


def test_another_file_than_the_published_one_is_refused(tmp_path: Path) -> None:
    make_cifar(tmp_path)
    with pytest.raises(
        UserError, match=r"cifar-10-python\.tar\.gz: sha256 .* found, the published file of cifar10 has 6d958be0"
    ):
        open_published("cifar10", tmp_path)


class Hostile:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("canary",)


@pytest.mark.parametrize("value", [Hostile(), {b"data": Hostile()}, [len], RNG])
def test_a_pickle_that_calls_anything_is_refused(
    value: object, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="which is not allowed"):
        load_plain(pickle.dumps(value, 2))
    assert not list(tmp_path.iterdir())


def test_a_hostile_pickle_in_cifars_archive_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with tarfile.open("cifar-10-python.tar.gz", "w:gz") as tar:
        add(tar, "cifar-10-batches-py/data_batch_1", pickle.dumps(Hostile()))
    with_digests("cifar10", tmp_path, monkeypatch)
    with pytest.raises(UserError, match=r"data_batch_1: not a readable pickle of plain data: it asks for posix\.mkdir"):
        open_published("cifar10", tmp_path)
    assert not (tmp_path / "canary").exists()


def test_plain_pickles_of_either_python_are_read() -> None:
    value = {b"data": np.arange(6, dtype=np.uint8).reshape(2, 3), b"labels": [1, 2], b"name": b"x"}
    loaded = load_plain(pickle.dumps(value, 4))
    assert (loaded[b"data"] == value[b"data"]).all()
    # As Python 2 and numpy 1 wrote it: module names of old, byte strings as BINSTRING.
    old = b"\x80\x02cnumpy.core.multiarray\n_reconstruct\ncnumpy\nndarray\nK\x00\x85U\x01b\x87R(K\x01K\x03\x85cnumpy\ndtype\n"
    old += b"U\x02u1K\x00K\x01\x87R(K\x03U\x01|NNNJ\xff\xff\xff\xffJ\xff\xff\xff\xffK\x00tb\x89U\x03abctb."
    assert load_plain(old).tolist() == [97, 98, 99]


def repacked(name: str, root: Path, kind: str) -> None:
    """The files of a published set, packed in another way."""
    for file in PUBLISHED[name].files:
        path = root / file.name
        content = gzip.decompress(path.read_bytes())
        if kind == "another level":
            path.write_bytes(gzip.compress(content, 1, mtime=77))
        elif kind == "two members":
            path.write_bytes(gzip.compress(content[:700]) + gzip.compress(content[700:]))
        elif kind == "unpacked":
            path.unlink()
            (root / file.name.removesuffix(".gz")).write_bytes(content)
        elif kind == "unpacked under the old name":
            path.write_bytes(content)
        else:
            path.unlink()
            # A tar that these tests made, and under the filter that keeps members inside the folder.
            with tarfile.open(fileobj=io.BytesIO(content)) as tar:
                tar.extractall(root, filter="data")


def with_contents(name: str, root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make what the files in `root` hold the published content, under digests of files that nobody has."""
    files = []
    for file in PUBLISHED[name].files:
        if "" in file.content:
            content = {"": f"sha256:{hashlib.sha256(gzip.decompress((root / file.name).read_bytes())).hexdigest()}"}
        else:
            with tarfile.open(root / file.name) as tar:
                found = {Path(each.name).name: tar.extractfile(each) for each in tar if each.isfile()}
                content = {
                    n: f"sha256:{hashlib.sha256(found[n].read()).hexdigest()}" for n in file.content if found.get(n)
                }
        files.append(replace(file, digest="sha256:0", content=content))
    monkeypatch.setitem(PUBLISHED, name, replace(PUBLISHED[name], files=tuple(files)))


PACKINGS = ["another level", "two members", "unpacked", "unpacked under the old name", "a folder"]


@pytest.mark.parametrize("kind", PACKINGS)
@pytest.mark.parametrize("name", ["cifar10", "cifar100", "mnist", "fashion_mnist"])
def test_a_published_set_that_was_packed_anew_is_the_same(
    name: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if kind == "a folder" and "mnist" in name:
        kind = "unpacked"
    SETS[name].make(tmp_path)
    with_contents(name, tmp_path, monkeypatch)
    whole = open_published(name, tmp_path)
    repacked(name, tmp_path, kind)
    again = open_published(name, tmp_path)
    for part, labels in whole.labels.items():
        assert (again.labels[part] == labels).all()
        rows = {part: np.arange(len(labels))}
        for (*_, left), (*_, right) in zip(whole.read(rows), again.read(rows), strict=True):
            assert (np.asarray(left) == np.asarray(right)).all()


def test_a_changed_content_is_refused_however_it_is_packed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    make_idx(tmp_path)
    with_contents("mnist", tmp_path, monkeypatch)
    path = tmp_path / "t10k-labels-idx1-ubyte.gz"
    content = bytearray(gzip.decompress(path.read_bytes()))
    content[-1] ^= 1
    for changed in (gzip.compress(bytes(content)), path.read_bytes()[:-9], b"", bytes(content)):
        path.write_bytes(changed)
        with pytest.raises(
            UserError, match=r"t10k-labels.*and what it holds is not what that one holds; delete it and"
        ):
            open_published("mnist", tmp_path)
