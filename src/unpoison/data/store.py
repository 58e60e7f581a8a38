"""Formats of data on disk: base data sets and overlays.

A base is a folder with `manifest.json` and one folder per split: the images (uint8 [n, height, width, channels], in
`images.npy`, or past 1 GiB in `images-00000.npy` and so on), `labels.npy` (int64 [n], -1 where unlabelled) and, where the source
has them, `sources.txt`, a name for each sample, and `attributes.npy` (int64 [n, a], from 0). An overlay replaces some samples of
one split of a base; a poisoned set at 1 % costs 1 % of a copy.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
from annotated_types import Len
from pydantic import ConfigDict, Field

from ..core.arrays import Images, IntArray
from ..core.errors import ParameterError, UserError
from ..core.files import new_folder, open_file, sha256_file, sha256_json
from ..core.hyperparameters import Whole
from ..core.manifest import Manifest, Name, Names, Size, check_file, read_manifest, write_manifest
from ..core.npy import load_array
from .imageset import ImageSet, Overlay
from .shards import Shards, ShardWriter, shard_names

BASE, OVERLAY = "unpoison-base-1", "unpoison-overlay-1"
MANIFEST = "manifest.json"
SOURCES = "sources.txt"
ATTRIBUTES = "attributes.npy"
Received = Literal["set", "model", "surrogate"]
"""What the victim of an attack gets: a poisoned data set; a model that the attacker trained, and no poisoned set; or the same
model, and for data-level methods a set that stands in for the one that there is not."""
LISTINGS = ("defects.txt", "ignored.txt")
"""Lists of the files left out of a base data set and of those that are no samples, a line for each, often none."""


class BaseManifest(Manifest):
    """Manifest of a base data set; what else its source says of itself is kept as it is.

    Attributes:
        classes: class names.
        shape: height, width and channels of every image.
        counts: images per split.
        name: name of the source.
        source: place that it is from.
        defects: number of files left out.
        trusted: part of the source that the reserve was taken from.
        attributes: names of the columns of `attributes.npy`, in the splits that have one.
    """

    model_config = ConfigDict(extra="allow")

    classes: Annotated[Names, Len(1)]
    shape: Annotated[list[Size], Len(3, 3)]
    counts: dict[Name, Whole]
    name: str = ""
    source: str = ""
    defects: Whole = 0
    trusted: str = ""
    attributes: Names = Field(default_factory=list)


class Attributes(NamedTuple):
    """Attributes of the samples of a split, besides their labels.

    Attributes:
        names: their names.
        values: int64 [n, attributes], from 0.
    """

    names: tuple[str, ...]
    values: IntArray

    def of(self, name: str) -> IntArray:
        """The values of one attribute, int64 [n]. Raises ParameterError for `attribute` where there is none of that name."""
        if name not in self.names:
            listed = ", ".join(self.names[:40]) or "none: the data set has no attributes (data.attributes)"
            raise ParameterError(f"attribute: {name!r} given, allowed: {listed}")
        return self.values[:, self.names.index(name)]


class OverlayManifest(Manifest):
    """Manifest of an overlay.

    Attributes:
        base: digest of its base's manifest.
        split: name of the split that it lies over.
        count: number of samples that it replaces.
        received: what the victim of an attack gets.
    """

    base: str
    split: Name
    count: Whole
    received: Received = "set"


class BaseWriter:
    """A base data set under construction; see `new_base`.

    Attributes:
        shape: height, width and channels of every image; the first one written decides them.
        about: entries for the manifest.
        counts: images per split, known at the end.
    """

    def __init__(
        self, folder: Path, labels: Mapping[str, IntArray], attributes: Mapping[str, IntArray], about: dict[str, Any]
    ) -> None:
        self.shape: tuple[int, int, int] | None = None
        self.about, self.counts = about, dict.fromkeys(labels, 0)
        self._folder, self._labels, self._attributes = folder, labels, attributes
        self._writers: dict[str, ShardWriter] = {}

    def write(self, split: str, rows: IntArray, images: Images) -> None:
        """Put images uint8 [k, height, width, channels] at rows of a split. Rows that get none are left out at the end."""
        # The files have their full length from the start, which needs the shape: hence none before the first image.
        if self.shape is None:
            self.shape = images.shape[1], images.shape[2], images.shape[3]
        if split not in self._writers:
            self._writers[split] = ShardWriter(self._folder / split, len(self._labels[split]), self.shape)
        self._writers[split].write(rows, images)

    def write_text(self, name: str, lines: Sequence[str]) -> None:
        (self._folder / name).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")

    def _finish(self, classes: Sequence[str], names: Mapping[str, Sequence[str]]) -> None:
        """Write labels, names and manifest, for the rows that have an image."""
        if self.shape is None:
            raise UserError("no image could be used, allowed: at least one in every split")
        for split, labels in self._labels.items():
            # A split that got no image has files of no rows, if it may be empty at all.
            writer = self._writers.get(split) or ShardWriter(self._folder / split, len(labels), self.shape)
            kept = writer.close()
            self.counts[split] = len(kept)
            # A source may be asked for no test split at all.
            if not len(kept) and (split == "train" or (split == "test" and len(labels))):
                raise UserError(f"no image is left for the {split} split, allowed: at least one")
            np.save(self._folder / split / "labels.npy", labels[kept].astype(np.int64))
            if split in names:
                self.write_text(f"{split}/{SOURCES}", [names[split][row] for row in kept])
            if split in self._attributes:
                np.save(self._folder / split / ATTRIBUTES, self._attributes[split][kept].astype(np.int64))
        manifest = {"format": BASE, "classes": list(classes), "shape": list(self.shape)}
        write_manifest(self._folder, MANIFEST, {**manifest, "counts": self.counts, **self.about})


@contextmanager
def new_base(
    folder: Path,
    classes: Sequence[str],
    labels: Mapping[str, IntArray],
    names: Mapping[str, Sequence[str]],
    about: dict[str, Any],
    attributes: Mapping[str, IntArray] | None = None,
) -> Iterator[BaseWriter]:
    """A base data set to fill; it takes its place when the block ends without an error.

    Args:
        folder: folder that is made or replaced.
        classes: class names.
        labels: labels by split, int64 [n].
        names: names of the samples by split, n each, for those splits whose samples have names.
        about: name, source, licence and so on, for the manifest; with attributes their names, as `attributes`.
        attributes: attributes of the samples by split, int64 [n, attributes]; None: there are none.
    """
    with new_folder(folder) as staging:
        writer = BaseWriter(staging, labels, attributes or {}, dict(about))
        yield writer
        # Not reached where the block raises: the folder then stays as it was.
        writer._finish(classes, names)


def write_base(
    folder: Path, splits: dict[str, tuple[Images, IntArray]], *, classes: tuple[str, ...], **about: Any
) -> None:
    """Write a base data set that is in memory. `about` (name, source, licence and so on) goes to the manifest as it is."""
    shapes = {images.shape[1:] for images, _ in splits.values()}
    if len(shapes) != 1:
        raise UserError(f"{folder}: images of shapes {sorted(shapes)} given, allowed: one shape in all splits")
    with new_base(folder, classes, {name: labels for name, (_, labels) in splits.items()}, {}, about) as base:
        for name, (images, _) in splits.items():
            base.write(name, np.arange(len(images)), images)
        # Present in every base, if only empty, so that no reader has to ask.
        for listing in LISTINGS:
            base.write_text(listing, [])


def open_split(folder: Path, split: str) -> ImageSet:
    """A split of a base data set, with its digests checked, read from disk as it is used.

    Raises:
        UserError: a file is missing, changed, or of another format; the split does not exist.
    """
    manifest = read_manifest(folder, MANIFEST, BASE, BaseManifest)
    count = manifest.counts.get(split)
    if count is None:
        raise UserError(f"{folder}: split {split!r} asked for, available: {', '.join(list(manifest.counts)[:20])}")
    images = _images(folder, manifest, f"{split}/", (count, *manifest.shape))
    labels = _labels(folder, manifest, f"{split}/labels.npy", count, len(manifest.classes), split)
    return ImageSet(images, labels, tuple(manifest.classes), sha256_file(folder / MANIFEST))


def read_about(folder: Path) -> dict[str, Any]:
    """The manifest of a base data set."""
    return read_manifest(folder, MANIFEST, BASE, BaseManifest).model_dump(exclude_unset=True)


def read_attributes(folder: Path, split: str) -> Attributes:
    """The attributes of the samples of a split; none, of no columns, where the split has none.

    Raises:
        UserError: a file is missing, changed or of another format; another number of columns than names; a value below 0.
    """
    manifest = read_manifest(folder, MANIFEST, BASE, BaseManifest)
    name, count = f"{split}/{ATTRIBUTES}", manifest.counts.get(split, 0)
    if name not in manifest.files:
        load_array(check_file(folder, manifest, f"{split}/labels.npy"), np.int64, (count,), mmap=True)
        return Attributes((), np.zeros((count, 0), np.int64))
    if len(set(manifest.attributes)) < len(manifest.attributes):
        raise UserError(f"{folder / MANIFEST}: attributes: a name is there twice, allowed: each once")
    path = check_file(folder, manifest, name)
    values: IntArray = load_array(path, np.int64, (count, len(manifest.attributes)))
    if values.size and values.min() < 0:
        raise UserError(f"{path}: {values.min()} found, allowed: values from 0")
    return Attributes(tuple(manifest.attributes), values)


def read_sources(folder: Path, split: str) -> list[str]:
    """The name of every sample in the source it came from, or `split/NUMBER` where the source has none."""
    manifest = read_manifest(folder, MANIFEST, BASE, BaseManifest)
    name, count = f"{split}/{SOURCES}", manifest.counts.get(split, 0)
    if name not in manifest.files:
        # The labels are there in any case, and the manifest's count is believed only where they are as many.
        load_array(check_file(folder, manifest, f"{split}/labels.npy"), np.int64, (count,), mmap=True)
        return [f"{split}/{number:05d}" for number in range(count)]
    path = check_file(folder, manifest, name)
    with open_file(path) as file:
        # Cut at the ends of lines that were written, and not at all that Unicode counts as such: names may hold those.
        lines = file.read().decode("utf-8", "backslashreplace").split("\n")[:-1]
    if len(lines) != count:
        raise UserError(f"{path}: {len(lines)} names found, allowed: one for each of {count} samples")
    return lines


@contextmanager
def new_overlay(
    folder: Path,
    base: ImageSet,
    index: IntArray,
    labels: IntArray,
    *,
    split: str = "train",
    received: Received = "set",
) -> Iterator[ShardWriter]:
    """An overlay to fill by row; it takes its place when the block ends without an error.

    The manifest names the base by digest and says nothing about an attack but what its victim gets, where that is not this set.

    Args:
        folder: folder that is made or replaced.
        base: split of a base data set that it lies over.
        index: samples it replaces, int64 [k], sorted.
        labels: their labels, int64 [k].
        split: name of that split.
        received: what the victim gets.

    Raises:
        ValueError: fewer images than samples.
    """
    with new_folder(folder) as staging:
        np.save(staging / "index.npy", index.astype(np.int64))
        np.save(staging / "labels.npy", labels.astype(np.int64))
        writer = ShardWriter(staging, len(index), (*base.image_size, base.channels))
        yield writer
        if len(writer.close()) != len(index):
            raise ValueError(f"{folder}: {len(index)} images announced, fewer written")
        about: dict[str, Any] = {"format": OVERLAY, "base": base.digest, "split": split, "count": len(index)}
        write_manifest(staging, MANIFEST, about if received == "set" else {**about, "received": received})


def open_overlay(base_folder: Path, split: str, folder: Path) -> tuple[ImageSet, Overlay]:
    """A split of a base data set and an overlay over it, both read from disk as they are used.

    Raises:
        UserError: a file is missing, changed or of another format; an overlay over another base data set or split.
    """
    base, manifest = open_split(base_folder, split), read_manifest(folder, MANIFEST, OVERLAY, OverlayManifest)
    # Over another base every index would name another image, and nothing would look wrong.
    if (manifest.base, manifest.split) != (base.digest, split):
        raise UserError(
            f"{folder / MANIFEST}: made for the {manifest.split[:80]} split of another base data set "
            f"({manifest.base[:16]!r}…, the {split} split of {base_folder} is of {base.digest[:16]}…); run the stage that "
            "makes it again"
        )
    index = load_array(check_file(folder, manifest, "index.npy"), np.int64, (manifest.count,))
    # Rows are found by bisection: out of order or twice, some images would be the base's and nothing would say so.
    if len(index) and (index[0] < 0 or index[-1] >= len(base) or (np.diff(index) <= 0).any()):
        raise UserError(f"{folder / 'index.npy'}: allowed: rows 0 to {len(base) - 1} in rising order, each once")
    labels = _labels(folder, manifest, "labels.npy", manifest.count, len(base.classes), split)
    shape = (manifest.count, *base.image_size, base.channels)
    return base, Overlay(index, _images(folder, manifest, "", shape), labels)


def open_poisoned(base_folder: Path, folder: Path) -> ImageSet:
    """The train split as a victim receives it, base and overlay composed as they are read."""
    base, overlay = open_overlay(base_folder, "train", folder)
    # Labels are small and composed at once; images are composed as they are gathered.
    labels = base.labels.copy()
    labels[overlay.index] = overlay.labels
    return ImageSet(base.base, labels, base.classes, poisoned_digest(base, folder), overlay)


def received_of(folder: Path) -> Received:
    """What the victim of the attack gets, as the overlay in `folder` says."""
    return read_manifest(folder, MANIFEST, OVERLAY, OverlayManifest).received


def poisoned_digest(base: ImageSet, folder: Path) -> str:
    """Digest of the train split `base` with the overlay in `folder`."""
    # Both by their manifests, which hold the digests of all their files.
    return sha256_json([base.digest, sha256_file(folder / MANIFEST)])


def _images(folder: Path, manifest: Manifest, split: str, shape: tuple[int, ...]) -> Shards:
    """The images of a split ("" in an overlay), whose number and sides must be those of the manifest."""
    names = shard_names(list(manifest.files), split)
    if not names:
        raise UserError(f"{folder / MANIFEST}: lists no images for {split or 'it'}; run the stage again")
    images = Shards([check_file(folder, manifest, name) for name in names])
    if images.shape != shape:
        raise UserError(f"{folder / names[0]}: images of shape {images.shape} found, {MANIFEST} says {shape}")
    return images


def _labels(folder: Path, manifest: Manifest, name: str, count: int, classes: int, split: str) -> IntArray:
    """Labels, int64 [count], each of a class; -1 as well in the public split, which has none."""
    path = check_file(folder, manifest, name)
    labels: IntArray = load_array(path, np.int64, (count,))
    least = -1 if split == "public" else 0
    if count and (labels.min() < least or labels.max() >= classes):
        raise UserError(
            f"{path}: labels {labels.min()} to {labels.max()} found, allowed: {least} to {classes - 1}, one of "
            f"{classes} classes"
        )
    return labels
