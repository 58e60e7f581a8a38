"""From a source to a base data set: split, read, decode in threads, resize, write by row."""

from __future__ import annotations

import os
from collections import deque
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge
from numpy.typing import NDArray
from PIL import Image

from ..core.arrays import Images, IntArray
from ..core.errors import ParameterError, UserError
from ..core.files import new_file
from ..core.progress import progress
from ..data.store import BaseWriter, new_base
from .attributes import Table, values_of
from .decode import DefectError, Resize, decode_noting, resized
from .source import Source
from .splits import Place, SplitSettings, arrange

CHUNK = 64  # images per task: handing a task to a thread costs as much as decoding a small image
CHUNK_BYTES = 16 << 20  # bytes per task, encoded or decoded: photographs are handed over a few at a time
WAITING_BYTES = 512 << 20  # decoded bytes that may wait to be written
NAMED = 8  # broken files named in an error; a file lists all of them

Item = tuple[str, int, bytes | Images | str]
"""split, row, and an image file, its pixels, or the reason why there is neither"""
Named = tuple[str, int, bytes | Images | str, str]
"""as `Item`, with the image's name"""
Decoded = tuple[str, int, Images | str, bool]
"""split, row, the pixels or the reason, and whether 16 bits hold 12; see `sources.decode.decode_noting`"""
Shape = tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class BuildSettings:
    """Settings for decoding and resizing images.

    Attributes:
        image_size: pixels per side; null leaves images as they are, which must then be of one size.
        resize: `crop`, `pad` or `stretch`; see `sources.decode.to_square`.
        on_error: whether files that cannot be used stop the build (`fail`) or are left out and counted (`skip`).
    """

    image_size: Annotated[int, Ge(8)] | None = None
    resize: Resize = "crop"
    on_error: Literal["fail", "skip"] = "fail"


def build_base(
    source: Source,
    folder: Path,
    split: SplitSettings,
    settings: BuildSettings,
    *,
    defects: Path,
    other: Source | None = None,
    attributes: Table | None = None,
) -> dict[str, int]:
    """Write the base data set of a source.

    Args:
        source: images, labels and names.
        folder: folder of the base data set.
        split: sizes and seed of the splits.
        settings: decoding and resizing.
        defects: text file that lists the files that cannot be used, a line for each with name and reason; written where
            they stop the build.
        other: source of the reserve (`sources.reserve.open_reserve`), with `reserve_from: other`.
        attributes: attributes of the samples; the public split, which is unlabelled, and a reserve of another source get none.

    Returns:
        The number of images in each split; `defects`, the number of files left out; and with attributes `rows`, the number of
        their rows that stand for no sample.

    Raises:
        UserError: no split is possible; images of several sizes without `image_size`; broken files with `on_error: fail`;
            a class without a training image that can be used; what `attributes.values_of` refuses.
    """
    labels_of, names_of = dict(source.labels), dict(source.names)
    if other is not None:
        labels_of |= other.labels
        names_of |= other.names
    places = arrange(labels_of, split, source.classes)
    # The public split is unlabelled even where its samples come from a labelled part.
    labels = {
        name: np.full(len(rows), -1) if name == "public" else labels_of[part][rows]
        for name, (part, rows) in places.items()
    }
    names = {name: [names_of[part][row] for row in rows] for name, (part, rows) in places.items()}
    # A reserve out of the training set is decoded with it: its row by the row there.
    own = {name: place for name, place in places.items() if name != "reserve" or split.reserve_from == "held_out"}
    twins: dict[int, int] = {}
    if split.reserve_from == "train":
        in_train = np.searchsorted(places["train"][1], places["reserve"][1])
        twins = {int(row): number for number, row in enumerate(in_train)}
    problems = source.problems + (other.problems if other is not None else [])
    ignored = source.ignored + (other.ignored if other is not None else [])
    broken = list(problems)
    dim: list[str] = []
    written = {name: np.zeros(len(rows), bool) for name, (_, rows) in places.items()}
    about = {
        **source.about,
        "image_size": settings.image_size,
        "resize": settings.resize,
        "trusted": places["reserve"][0],
    }
    if split.reserve_from != "held_out":
        about["reserve_from"] = split.reserve_from
    if other is not None:
        about["reserve_source"] = other.about["source"]
    attributes_of: dict[str, IntArray] = {}
    unused: dict[str, int] = {}
    if attributes is not None:
        of_part, unused["rows"] = values_of(
            attributes, {part: source.names[part] for part in source.labels if part != "public"}
        )
        attributes_of = {
            name: of_part[part][rows] for name, (part, rows) in own.items() if name != "public" and part in of_part
        }
        if split.reserve_from == "train":
            part, rows = places["reserve"]
            attributes_of["reserve"] = of_part[part][rows]
        about["attributes"] = list(attributes.names)
    total = sum(map(len, names.values())) - len(twins)

    def decoded(base: BaseWriter) -> Generator[list[Decoded]]:
        yield from _decoded(_named(source, own, names), settings)
        # The other source's last, in the shape that the base's have got.
        if other is not None and base.shape is not None:
            yield from _fitted(_named(other, {"reserve": places["reserve"]}, names), settings, base.shape)

    # An error leaves the generator half-way, with decoding threads at work, unless it is closed.
    with (
        new_base(folder, source.classes, labels, names, about, attributes_of) as base,
        closing(decoded(base)) as blocks,
    ):
        for block in blocks:
            # A block's images by split and row, so that each split is written once per block.
            good: dict[str, dict[int, Images]] = {}
            for name, row, result, is_dim in block:
                if isinstance(result, str):
                    broken.append((names[name][row], result))
                    continue
                dim += [names[name][row]] * is_dim
                good.setdefault(name, {})[row] = result
            if copied := {twins[row]: image for row, image in good.get("train", {}).items() if row in twins}:
                good["reserve"] = copied
            for name, images in good.items():
                base.write(name, np.array(list(images)), np.stack(list(images.values())))
                written[name][list(images)] = True
        # Sorted by name: the order of a source's own is that of an archive or a file system.
        broken.sort()
        if broken and settings.on_error == "fail":
            raise _broken_error(broken, defects, total + len(problems))
        for name in ("train", "test") if other is None else ("train", "test", "reserve"):
            _check_left(name, labels[name], written[name], names[name], broken, source.classes, defects)
        base.about |= {"defects": len(broken), "ignored": len(ignored)}
        if dim:
            base.about["dim"] = {"count": len(dim), "first": min(dim)}
        for file, lines in (("defects.txt", [f"{n}: {why}" for n, why in broken]), ("ignored.txt", ignored)):
            base.write_text(file, lines)
    return {**base.counts, "defects": len(broken), **unused}


def _named(source: Source, places: Mapping[str, Place], names: Mapping[str, list[str]]) -> Iterator[Named]:
    """The images asked for with split, row there and name, and a bar of how many have been read."""
    total = sum(len(rows) for _, rows in places.values())
    for name, row, content in progress(_items(source, places), what="prepare", unit="image", total=total):
        yield name, row, content, names[name][row]


def _fitted(items: Iterator[Named], settings: BuildSettings, shape: Shape) -> Generator[list[Decoded]]:
    """Chunks decoded as `_decoded` does, whatever their size, in the sides and channels of `shape`."""
    height, width, channels = shape
    if height != width:
        raise ParameterError(
            f"image_size: null given for images of {width}x{height} px, allowed with reserve_from: other: a number of pixels "
            "per side, which the reserve has then as well"
        )
    for block in _decoded(items, replace(settings, image_size=width)):
        yield [(name, row, _grey(pixels) if channels == 1 else pixels, is_dim) for name, row, pixels, is_dim in block]


def _grey(pixels: Images | str) -> Images | str:
    """The luminance, uint8 [h, w, 1], of what a file was decoded to, or the reason why there is nothing."""
    return pixels if isinstance(pixels, str) else np.asarray(Image.fromarray(pixels).convert("L"))[..., None]


def _items(source: Source, places: Mapping[str, Place]) -> Iterator[Item]:
    """The images asked for, in the source's order, with their split and row."""
    # Two arrays per part turn a source's row into split and row there: 9 bytes a sample, a fraction of a dictionary's.
    splits = list(places)
    split_of = {part: np.full(len(labels), -1, np.int8) for part, labels in source.labels.items()}
    row_of = {part: np.zeros(len(labels), np.int64) for part, labels in source.labels.items()}
    for number, (part, rows) in enumerate(places.values()):
        split_of[part][rows] = number
        row_of[part][rows] = np.arange(len(rows))
    wanted = {part: np.flatnonzero(numbers >= 0) for part, numbers in split_of.items()}
    for part, row, content in source.read(wanted):
        yield splits[split_of[part][row]], int(row_of[part][row]), content


def _decoded(items: Iterator[Named], settings: BuildSettings) -> Generator[list[Decoded]]:
    """Chunks decoded in threads, in order; a few chunks are under way at a time, whatever the source's size."""
    # Without a size asked for, the first image that can be used decides it for all.
    shape: Shape = (settings.image_size, settings.image_size, 3) if settings.image_size else ()
    while not shape:
        if not (first := next(items, None)):
            return
        decoded = _pixels(first, settings, shape)
        yield [decoded]
        shape = () if isinstance(decoded[2], str) else decoded[2].shape
    size = int(np.prod(shape))

    def work(chunk: list[Named]) -> list[Decoded]:
        return [_pixels(item, settings, shape) for item in chunk]

    # Threads, not processes: Pillow's decoders release the interpreter's lock, and no image has to be sent anywhere.
    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    images = max(1, min(CHUNK, CHUNK_BYTES // size))
    # Twice as many chunks as threads: none waits for the next one to be read, and memory stays bounded.
    waiting = max(1, min(2 * threads, WAITING_BYTES // (images * size)))
    pending: deque[Future[list[Decoded]]] = deque()
    with ThreadPoolExecutor(threads) as pool:
        for chunk in _chunks(items, images):
            pending.append(pool.submit(work, chunk))
            if len(pending) > waiting:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _chunks(items: Iterator[Named], images: int = CHUNK) -> Iterator[list[Named]]:
    """Items in tasks of `images` or `CHUNK_BYTES` encoded bytes, whichever is reached first."""
    chunk: list[Named] = []
    size = 0
    for item in items:
        chunk.append(item)
        size += len(item[2])
        if len(chunk) == images or size >= CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _pixels(item: Named, settings: BuildSettings, shape: Shape) -> Decoded:
    """An image's pixels in the size asked for, or the reason why it has none."""
    split, row, content, name = item
    if isinstance(content, str):
        return split, row, content, False
    try:
        if isinstance(content, bytes):
            pixels, dim = decode_noting(content, settings.image_size, settings.resize)
        else:
            pixels, dim = resized(content, settings.image_size, settings.resize), False
    except DefectError as defect:
        return split, row, str(defect), False
    if shape and pixels.shape[:2] != shape[:2]:
        sizes = [f"{s[1]}x{s[0]}" for s in (shape, pixels.shape)]
        raise ParameterError(
            f"image_size: null given, but images differ in size ({sizes[0]}, and {name} is {sizes[1]}); "
            "allowed: a number of pixels per side"
        )
    return split, row, pixels, dim


def _check_left(
    split: str,
    labels: IntArray,
    written: NDArray[np.bool_],
    names: list[str],
    broken: list[tuple[str, str]],
    classes: tuple[str, ...],
    defects: Path,
) -> None:
    """Raises ParameterError for a class whose training images are all broken, and for a split that has none at all."""
    lost = np.setdiff1d(labels, labels[written])
    if not len(lost) or (split == "test" and written.any()):
        return
    rows = np.flatnonzero(labels == lost[0])
    reasons = dict(broken)
    _write_defects(broken, defects)
    others = f" (and {len(lost) - 1} more classes)" if len(lost) > 1 else ""
    key = "reserve_path" if split == "reserve" else "path"
    raise ParameterError(
        f"{key}: class {classes[lost[0]]}{others} is without a {split} image that can be used: all {len(rows)} are broken "
        f"({names[rows[0]]}: {reasons.get(names[rows[0]], 'absent')}); {len(broken)} files in all, listed in {defects}; "
        "allowed: at least one whole image in every class"
    )


def _write_defects(broken: list[tuple[str, str]], path: Path) -> None:
    with new_file(path) as staging:
        staging.write_text("".join(f"{name}: {why}\n" for name, why in broken), encoding="utf-8")


def _broken_error(broken: list[tuple[str, str]], path: Path, total: int) -> UserError:
    _write_defects(broken, path)
    named = ", ".join(f"{name} ({why})" for name, why in broken[:NAMED])
    more = f" and {len(broken) - NAMED} more" if len(broken) > NAMED else ""
    return ParameterError(
        f"path: {len(broken)} of {total} files cannot be used: {named}{more}; all of them are listed in {path}; "
        "allowed: whole images, or on_error: skip"
    )
