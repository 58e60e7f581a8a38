"""A folder or archive of images in ImageFolder layout: `train/CLASS/…` and `test/CLASS/…`, or `CLASS/…` alone."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from ..core.arrays import Images
from ..core.errors import ParameterError
from .containers import list_members, read_members
from .layout import Arrangement, Layout, arrange, label_of
from .names import cut, hides, listed, path_shown, short, shown
from .source import Rows, Source

IMAGES = (".jpg", ".jpeg", ".jpe", ".jfif", ".png", ".webp", ".bmp", ".ppm")
NOT_READ = (".gif", ".tif", ".tiff", ".heic", ".heif", ".avif", ".jp2", ".jxl", ".pgm", ".tga", ".ico", ".svg")
MARKS = (b"\xff\xd8\xff", b"\x89PNG", b"RIFF", b"BM", b"P6")
"""How a JPEG, PNG, WebP, BMP or PPM file begins."""
TABLE = "val_annotations.txt"
NAMED = 5  # folders without an image that are named


@dataclass
class _Listing:
    """The files of a source, sorted out.

    Attributes:
        samples: name and class of each sample, by part.
        problems: name and reason of each image that cannot be used.
        ignored: names of files that are no samples.
        notes: lines on what was passed over.
        links: name of the file that is read for it, by name of each link inside an archive.
        parts: folders that were taken for parts.
    """

    samples: dict[str, list[tuple[str, str]]] = field(default_factory=dict)
    problems: list[tuple[str, str]] = field(default_factory=list)
    ignored: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    links: dict[str, str] = field(default_factory=dict)
    parts: list[str] = field(default_factory=list)


def open_folder(path: Path, layout: Layout = "auto") -> Source:
    """A folder or archive as a source; nothing is decoded yet.

    A single folder around everything is passed over. Where there are folders of parts, files outside them are ignored, as
    are hidden files, those of file servers, and files that are no images; all are listed. A second test folder (`val` beside
    `test`) is ignored. Classes are the folders' names in Unicode's composed form (NFC), sorted by code point as
    torchvision's ImageFolder does.

    Args:
        path: the folder or archive.
        layout: what its top folders are: `parts`, `classes`, or what their names say together (`layout.arrange`).

    Raises:
        UserError: no such path; no layout that is understood; fewer than two classes; a class of another part that the
            training part does not have.
    """
    listing = _sort_out(path, layout)
    # The training part has the say about classes: a model cannot learn one that is in the test part alone.
    classes = tuple(sorted({label for _, label in listing.samples.get("train", [])}))
    if len(classes) < 2:
        raise ParameterError(
            f"path: {path_shown(path)}: {len(classes)} classes with images found ({listed(classes) or 'none'}), "
            f"allowed: at least two, as CLASS/IMAGE, or as train/CLASS/IMAGE and test/CLASS/IMAGE{_unused(listing)}"
        )
    place = {label: number for number, label in enumerate(classes)}
    labels, names = {}, {}
    for part, samples in listing.samples.items():
        # The public part is unlabelled, so its folders may have any names, or be absent.
        strange = sorted({label for _, label in samples} - set(classes)) if part != "public" else []
        if strange:
            raise ParameterError(
                f"path: {path_shown(path)}: {part} has classes that train has not: {listed(strange)}; "
                f"allowed: {listed(classes)}"
            )
        names[part] = [name for name, _ in samples]
        labels[part] = np.array([place[label] if part != "public" else -1 for _, label in samples], np.int64)

    def read(rows: Rows) -> Iterator[tuple[str, int, bytes | Images | str]]:
        # By name, as an archive is read in its own order, once for all parts.
        wanted = {names[part][row]: (part, int(row)) for part, part_rows in rows.items() for row in part_rows}
        for name, content in read_members(path, wanted.keys(), listing.links):
            yield (*wanted[name], content)

    about = {"name": "folder", "source": shown(path.name), "licence": "as the source's"}
    # The names as users see them are for lists alone: a file is read by the name it has.
    displayed = {part: [shown(name) for name in part_names] for part, part_names in names.items()}
    return Source(classes, labels, displayed, read, about, listing.problems, listing.ignored, listing.notes)


def _sort_out(path: Path, layout: Layout) -> _Listing:
    """Every file of a source as a sample, a problem or a file to ignore."""
    contents = list_members(path)
    listing = _Listing(links=contents.links, notes=contents.notes)
    # First by name alone. What hides, and what file servers add, is ignored whatever it is.
    for name, problem, told, _ in contents.problems:
        if told or not _ignored(name):
            listing.problems.append((shown(name), problem))
        else:
            listing.ignored.append(shown(name))
    images: list[str] = []
    for name in contents.files:
        if _ignored(name):
            listing.ignored.append(shown(name))
        elif name.lower().endswith(NOT_READ):
            listing.problems.append((shown(name), "a format that is not read; allowed: JPEG, PNG, WebP, BMP"))
        else:
            images.append(name)
    # Then the layout, and last each image's part and class.
    labelled = _labelled(path, contents.files)
    arrangement = arrange([labelled.get(name, name) for name in images], layout)
    listing.notes += arrangement.notes
    listing.parts = sorted(arrangement.parts)
    for name in images:
        part, levels = arrangement.place(labelled.get(name, name))
        if not part:
            listing.ignored.append(shown(name))
        elif len(levels) < 2 and part != "public":
            listing.problems.append((shown(name), "lies in no class folder"))
        else:
            # Interned, as a million samples share a few names.
            label = sys.intern(shown(label_of(levels[0])))
            listing.samples.setdefault(part, []).append((name, label))
    _check_lost(path, contents.files, arrangement, listing)
    listing.problems.sort()
    listing.ignored.sort()
    return listing


def _labelled(path: Path, files: list[str]) -> dict[str, str]:
    """The name that each image of Tiny-ImageNet's validation part would have in a folder of its class, by its own name.

    The part has a folder `images`, and beside it a table of the images' classes.
    """
    tables = {name for name in files if name.rpartition("/")[2] == TABLE and not hides(name)}
    names = {}
    for table, content in read_members(path, tables) if tables else ():
        folder = table.rpartition("/")[0]
        lines = content.decode("utf-8", "replace").splitlines() if isinstance(content, bytes) else []
        for image, label in (line.split("\t")[:2] for line in lines if "\t" in line):
            if label and "/" not in image + label:
                names[f"{folder}/images/{image}"] = f"{folder}/{label}/{image}"
    return names


def _check_lost(path: Path, files: list[str], arrangement: Arrangement, listing: _Listing) -> None:
    """Note class folders without an image. Raises ParameterError where they have images that are not called like one."""
    classes = {label for _, label in listing.samples.get("train", [])}
    if len(classes) < 2:
        return  # the message about that has the ignored files in it
    lost: dict[str, list[str]] = {}
    for name in files:
        if not name.lower().endswith(IMAGES + NOT_READ) and not hides(name) and "/" in name:
            part, levels = arrangement.place(name)
            if part == "train" and len(levels) > 1 and (label := shown(label_of(levels[0]))) not in classes:
                lost.setdefault(label, []).append(name)
    for label, names in list(lost.items())[:NAMED]:
        listing.notes.append(f"{cut(label)} holds no image: {len(names)} files ignored, such as {short(names[0])}")
    # Read only where the name says nothing: a text that lies beside images in an archive is not worth another pass.
    unknown = {names[0]: label for label, names in lost.items() if "." not in names[0].rpartition("/")[2]}
    for name, content in read_members(path, unknown.keys(), listing.links) if unknown else ():
        if isinstance(content, bytes) and content.startswith(MARKS):
            label = unknown[name]
            raise ParameterError(
                f"path: {path_shown(path)}: {cut(label)} has {len(lost[label])} files, such as {short(name)}, an image by its "
                f"content and not by its name; allowed: names that end in {', '.join(IMAGES)}"
            )


def _ignored(name: str) -> bool:
    """Whether a file is no image by its name: it hides, a file server made it, or it is called otherwise."""
    return hides(name) or not name.lower().endswith(IMAGES + NOT_READ)


def _unused(listing: _Listing) -> str:
    """What was found instead of samples, for a message: it says why there are none."""
    # Classes may be called like parts: then their images lie in no class folder.
    text = (
        f"; {listed(map(shown, listing.parts))} taken for parts, layout: classes takes them for classes"
        if listing.parts
        else ""
    )
    if listing.problems:
        name, reason = listing.problems[0]
        text += f"; {len(listing.problems)} files cannot be used, the first: {cut(name)} ({cut(reason)})"
    if listing.ignored:
        example, ends = cut(listing.ignored[0]), ", ".join(IMAGES)
        text += f"; {len(listing.ignored)} files ignored, such as {example} (names of images end in {ends})"
    return text
