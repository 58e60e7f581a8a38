"""A folder or archive of images in ImageFolder layout: `train/CLASS/…` and `test/CLASS/…`, or `CLASS/…` alone."""

from __future__ import annotations

import sys
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..core.arrays import Images
from ..core.errors import ParameterError
from .containers import list_members, read_members, shown
from .source import Rows, Source

IMAGES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".ppm")
NOT_READ = (".gif", ".tif", ".tiff", ".heic", ".heif", ".avif", ".jp2", ".jxl", ".pgm", ".tga", ".ico", ".svg")
PARTS = {
    "train": ("train", "training"),
    "test": ("test", "testing", "val", "valid", "validation"),
    "reserve": ("reserve", "trusted"),
    "public": ("public", "unlabelled", "unlabeled"),
}


@dataclass
class _Found:
    """What a listing comes to: samples as (name, class) per part, and what is none."""

    samples: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    problems: list[tuple[str, str]] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)


def open_folder(path: Path) -> Source:
    """List a folder or archive; nothing is decoded yet.

    One folder around everything is looked through. Where there are folders of parts, files outside them are ignored, as
    are hidden files and files that are no images; both are listed. A second test folder (`val` beside `test`) is ignored.
    Classes are the folders' names in Unicode's composed form (NFC), sorted by code point as torchvision's ImageFolder does.

    Raises:
        UserError: no such path; no layout that is understood; fewer than two classes; a class of another part that the
            training part does not have.
    """
    found = _sort_out(path)
    classes = tuple(sorted({label for _, label in found.samples.get("train", [])}))
    if len(classes) < 2:
        raise ParameterError(
            f"path: {path}: {len(classes)} classes with images found ({', '.join(map(shown, classes)) or 'none'}), "
            "allowed: at least two, as CLASS/IMAGE, or as train/CLASS/IMAGE and test/CLASS/IMAGE"
        )
    place = {label: number for number, label in enumerate(classes)}
    labels, names = {}, {}
    for part, samples in found.samples.items():
        strange = sorted({label for _, label in samples} - set(classes)) if part != "public" else []
        if strange:
            raise ParameterError(
                f"path: {path}: {part} has classes that train has not: {', '.join(map(shown, strange))}; "
                f"allowed: {', '.join(map(shown, classes))}"
            )
        names[part] = [name for name, _ in samples]
        labels[part] = np.array([place[label] if part != "public" else -1 for _, label in samples], np.int64)

    def read(rows: Rows) -> Iterator[tuple[str, int, bytes | Images | str]]:
        wanted = {names[part][row]: (part, int(row)) for part, some in rows.items() for row in some}
        for name, content in read_members(path, wanted.keys()):
            yield (*wanted[name], content)

    about = {"name": "folder", "source": shown(path.name), "licence": "as the source's"}
    listed = {part: [shown(name) for name in some] for part, some in names.items()}
    return Source(classes, labels, listed, read, about, found.problems, found.ignored)


def _sort_out(path: Path) -> _Found:
    found = _Found()
    images: list[str] = []
    for name, problem in list_members(path):
        parts = name.split("/")
        if any(part.startswith(".") and part != ".." for part in parts) or "__MACOSX" in parts:
            found.ignored.append(shown(name))
        elif name.lower().endswith(NOT_READ):
            found.problems.append((shown(name), "a format that is not read; allowed: JPEG, PNG, WebP, BMP"))
        elif not name.lower().endswith(IMAGES):
            found.ignored.append(shown(name))
        elif problem:
            found.problems.append((shown(name), problem))
        else:
            images.append(name)
    depth = _wrapping(images)
    tops = {name.split("/")[depth] for name in images if name.count("/") > depth}
    part_of = {top: part for part, names in PARTS.items() if (top := _first(names, tops))}
    for name in images:
        part, levels = "train", name.split("/")[depth:]
        if part_of:
            if levels[0] not in part_of:
                found.ignored.append(shown(name))
                continue
            part, levels = part_of[levels[0]], levels[1:]
        if len(levels) < 2 and part != "public":
            found.problems.append((shown(name), "lies in no class folder"))
            continue
        label = sys.intern(unicodedata.normalize("NFC", shown(levels[0])))
        found.samples.setdefault(part, []).append((name, label))
    return found


def _wrapping(images: list[str]) -> int:
    """How many folders lie around everything: `cifar10/train/…` is read as `train/…`."""
    known = {name for names in PARTS.values() for name in names}
    depth = 0
    while images and all(name.count("/") > depth + 1 for name in images):
        tops = {name.split("/")[depth] for name in images}
        if len(tops) > 1 or tops.pop().lower() in known:
            break
        depth += 1
    return depth


def _first(names: tuple[str, ...], tops: set[str]) -> str:
    """The folder for the first of the names that is there, in whatever case it is written."""
    return next((top for name in names for top in sorted(tops) if top.lower() == name), "")
