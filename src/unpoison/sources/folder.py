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
class _Listing:
    """The files of a source, sorted out.

    Attributes:
        samples: name and class of each sample, by part.
        problems: name and reason of each image that cannot be used.
        ignored: names of files that are no samples.
    """

    samples: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    problems: list[tuple[str, str]] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)


def open_folder(path: Path) -> Source:
    """A folder or archive as a source; nothing is decoded yet.

    A single folder around everything is passed over. Where there are folders of parts, files outside them are ignored, as
    are hidden files and files that are no images; both are listed. A second test folder (`val` beside `test`) is ignored.
    Classes are the folders' names in Unicode's composed form (NFC), sorted by code point as torchvision's ImageFolder does.

    Raises:
        UserError: no such path; no layout that is understood; fewer than two classes; a class of another part that the
            training part does not have.
    """
    listing = _sort_out(path)
    # The training part has the say about classes: a model cannot learn one that is in the test part alone.
    classes = tuple(sorted({label for _, label in listing.samples.get("train", [])}))
    if len(classes) < 2:
        raise ParameterError(
            f"path: {path}: {len(classes)} classes with images found ({', '.join(map(shown, classes)) or 'none'}), "
            "allowed: at least two, as CLASS/IMAGE, or as train/CLASS/IMAGE and test/CLASS/IMAGE"
        )
    place = {label: number for number, label in enumerate(classes)}
    labels, names = {}, {}
    for part, samples in listing.samples.items():
        # The public part is unlabelled, so its folders may have any names, or be absent.
        strange = sorted({label for _, label in samples} - set(classes)) if part != "public" else []
        if strange:
            raise ParameterError(
                f"path: {path}: {part} has classes that train has not: {', '.join(map(shown, strange))}; "
                f"allowed: {', '.join(map(shown, classes))}"
            )
        names[part] = [name for name, _ in samples]
        labels[part] = np.array([place[label] if part != "public" else -1 for _, label in samples], np.int64)

    def read(rows: Rows) -> Iterator[tuple[str, int, bytes | Images | str]]:
        # By name, as an archive is read in its own order, once for all parts.
        wanted = {names[part][row]: (part, int(row)) for part, part_rows in rows.items() for row in part_rows}
        for name, content in read_members(path, wanted.keys()):
            yield (*wanted[name], content)

    about = {"name": "folder", "source": shown(path.name), "licence": "as the source's"}
    # The names as users see them are for lists alone: a file is read by the name it has.
    displayed = {part: [shown(name) for name in part_names] for part, part_names in names.items()}
    return Source(classes, labels, displayed, read, about, listing.problems, listing.ignored)


def _sort_out(path: Path) -> _Listing:
    """Every file of a source as a sample, a problem or a file to ignore."""
    listing = _Listing()
    # First by name alone. What hides, or what macOS adds to archives, is ignored whatever it is; `..` is no hidden folder
    # but a hostile path, and among the problems.
    images: list[str] = []
    for name, problem in list_members(path):
        parts = name.split("/")
        if any(part.startswith(".") and part != ".." for part in parts) or "__MACOSX" in parts:
            listing.ignored.append(shown(name))
        elif name.lower().endswith(NOT_READ):
            listing.problems.append((shown(name), "a format that is not read; allowed: JPEG, PNG, WebP, BMP"))
        elif not name.lower().endswith(IMAGES):
            listing.ignored.append(shown(name))
        elif problem:
            listing.problems.append((shown(name), problem))
        else:
            images.append(name)
    # Then the layout: how deep it begins, and which of the folders there are parts.
    depth = _wrapping(images)
    tops = {name.split("/")[depth] for name in images if name.count("/") > depth}
    part_of = {top: part for part, names in PARTS.items() if (top := _first(names, tops))}
    # Last each image's part and class. Without folders of parts, everything is training data.
    for name in images:
        part, levels = "train", name.split("/")[depth:]
        if part_of:
            if levels[0] not in part_of:
                listing.ignored.append(shown(name))
                continue
            part, levels = part_of[levels[0]], levels[1:]
        if len(levels) < 2 and part != "public":
            listing.problems.append((shown(name), "lies in no class folder"))
            continue
        # macOS stores names decomposed: the same class would be two on two machines. Interned, as a million samples share
        # a few names.
        label = sys.intern(unicodedata.normalize("NFC", shown(levels[0])))
        listing.samples.setdefault(part, []).append((name, label))
    return listing


def _wrapping(images: list[str]) -> int:
    """Number of folders around everything: `cifar10/train/…` is read as `train/…`."""
    known = {name for names in PARTS.values() for name in names}
    # A folder of parts is no wrapping even where it is alone, nor is a class: images must lie a level further down.
    depth = 0
    while images and all(name.count("/") > depth + 1 for name in images):
        tops = {name.split("/")[depth] for name in images}
        if len(tops) > 1 or tops.pop().lower() in known:
            break
        depth += 1
    return depth


def _first(names: tuple[str, ...], tops: set[str]) -> str:
    """The folder among `tops` for the first of the names that is there, in whatever case; "" where none is."""
    return next((top for name in names for top in sorted(tops) if top.lower() == name), "")
