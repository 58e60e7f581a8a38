"""The artefact formats for data: base data sets and overlays.

A base is a folder with `manifest.json` and one folder per split with `images.npy` (uint8 [n, height, width, channels])
and `labels.npy` (int64 [n], -1 where unlabelled). An overlay replaces some samples of a base's train split; a poisoned
set at 1 % costs 1 % of a copy.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..errors import UserError
from .files import check_file, load_array, new_folder, read_json, sha256_file, write_manifest
from .imageset import ImageSet, IntArray, Overlay

MANIFEST = "manifest.json"


def write_base(
    folder: Path, splits: dict[str, tuple[NDArray[np.uint8], IntArray]], *, classes: tuple[str, ...], **about: Any
) -> None:
    """Write a base data set. `about` (name, source, licence, …) goes to the manifest as it is."""
    shapes = {images.shape[1:] for images, _ in splits.values()}
    if len(shapes) != 1:
        raise UserError(f"{folder}: images of shapes {sorted(shapes)} given, allowed: one shape in all splits")
    with new_folder(folder) as staging:
        for name, (images, labels) in splits.items():
            (staging / name).mkdir()
            np.save(staging / name / "images.npy", np.ascontiguousarray(images, dtype=np.uint8))
            np.save(staging / name / "labels.npy", labels.astype(np.int64))
        counts = {name: len(images) for name, (images, _) in splits.items()}
        manifest = {"format": "unpoison-base-1", "classes": list(classes), "shape": list(shapes.pop())}
        write_manifest(staging, MANIFEST, {**manifest, "counts": counts, **about})


def open_split(folder: Path, split: str) -> ImageSet:
    """A split of a base data set, memory-mapped, after its digests were compared.

    Raises:
        UserError: a file is missing, changed, or of another format; the split does not exist.
    """
    manifest = _manifest(folder, "unpoison-base-1")
    if split not in manifest["counts"]:
        raise UserError(f"{folder}: split {split!r} asked for, available: {', '.join(manifest['counts'])}")
    images = load_array(check_file(folder, manifest, f"{split}/images.npy"), mmap=True)
    labels = load_array(check_file(folder, manifest, f"{split}/labels.npy"))
    if images.dtype != np.uint8 or images.ndim != 4 or len(images) != len(labels):
        raise UserError(f"{folder}/{split}: {images.dtype} images of shape {images.shape} with {len(labels)} labels")
    return ImageSet(images, labels, tuple(manifest["classes"]), sha256_file(folder / MANIFEST))


def write_overlay(folder: Path, base: ImageSet, overlay: Overlay) -> None:
    """Write what replaces some samples of `base`; the manifest names the base by digest and nothing about an attack."""
    with new_folder(folder) as staging:
        np.save(staging / "index.npy", overlay.index.astype(np.int64))
        np.save(staging / "images.npy", overlay.images)
        np.save(staging / "labels.npy", overlay.labels.astype(np.int64))
        about = {"format": "unpoison-overlay-1", "base": base.digest, "split": "train", "count": len(overlay.index)}
        write_manifest(staging, MANIFEST, about)


def open_poisoned(base_folder: Path, overlay_folder: Path) -> ImageSet:
    """The train split as a victim receives it: base and overlay composed lazily."""
    base = open_split(base_folder, "train")
    manifest = _manifest(overlay_folder, "unpoison-overlay-1")
    if manifest["base"] != base.digest:
        raise UserError(
            f"{overlay_folder / MANIFEST}: made for another base data set ({manifest['base'][:16]}…, {base_folder} is "
            f"{base.digest[:16]}…); run the poison stage again"
        )
    index, images, labels = (
        load_array(check_file(overlay_folder, manifest, f"{name}.npy")) for name in ("index", "images", "labels")
    )
    merged = base.labels.copy()
    merged[index] = labels
    return ImageSet(base.base, merged, base.classes, base.digest, Overlay(index, images, labels))


def _manifest(folder: Path, expected: str) -> dict[str, Any]:
    manifest = read_json(folder / MANIFEST)
    if manifest.get("format") != expected:
        raise UserError(f"{folder / MANIFEST}: format {manifest.get('format')!r} found, allowed: {expected!r}")
    return manifest
