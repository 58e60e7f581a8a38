"""From a source to a base data set: split, read, decode in threads, resize, write by row."""

from __future__ import annotations

import os
import warnings
from collections import deque
from collections.abc import Generator, Iterator, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

import numpy as np
from annotated_types import Ge
from PIL import Image

from ..core.arrays import Images
from ..core.errors import ParameterError, UserError
from ..core.files import new_file
from ..core.progress import progress
from ..data.store import new_base
from .decode import DefectError, Resize, decode, resized
from .source import Source
from .splits import Place, SplitSettings, arrange

CHUNK = 64  # images per task: handing a task to a thread costs as much as decoding a small image
CHUNK_BYTES = 16 << 20  # encoded bytes per task: photographs are handed over a few at a time
NAMED = 8  # broken files named in an error; a file lists all of them

Item = tuple[str, int, bytes | Images | str]
"""split, row, and an image file, its pixels, or the reason why there is neither"""
Decoded = tuple[str, int, Images | str]


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
    source: Source, folder: Path, split: SplitSettings, settings: BuildSettings, *, defects: Path
) -> dict[str, int]:
    """Write the base data set of a source.

    Args:
        source: images, labels and names.
        folder: folder of the base data set.
        split: sizes and seed of the splits.
        settings: decoding and resizing.
        defects: text file that lists the files that cannot be used, a line for each with name and reason; written where
            they stop the build.

    Returns:
        The number of images in each split, and `defects`, the number of files left out.

    Raises:
        UserError: no split is possible; images of several sizes without `image_size`; broken files with `on_error: fail`.
    """
    places = arrange(source.labels, split)
    # The public split is unlabelled even where its samples come from a labelled part.
    labels = {
        name: np.full(len(rows), -1) if name == "public" else source.labels[part][rows]
        for name, (part, rows) in places.items()
    }
    names = {name: [source.names[part][row] for row in rows] for name, (part, rows) in places.items()}
    broken = list(source.problems)
    about = {
        **source.about,
        "image_size": settings.image_size,
        "resize": settings.resize,
        "trusted": places["reserve"][0],
    }
    total = sum(map(len, names.values()))
    items = progress(_items(source, places), what="prepare", unit="image", total=total)
    blocks = _decoded(items, settings)
    try:
        with new_base(folder, source.classes, labels, names, about) as base:
            for block in blocks:
                # A block's images by split and row, so that each split is written once per block.
                good: dict[str, dict[int, Images]] = {}
                for name, row, result in block:
                    if isinstance(result, str):
                        broken.append((names[name][row], result))
                        continue
                    base.shape = base.shape or (result.shape[0], result.shape[1], result.shape[2])
                    _check_shape(base.shape, result, names[name][row])
                    good.setdefault(name, {})[row] = result
                for name, images in good.items():
                    base.write(name, np.array(list(images)), np.stack(list(images.values())))
            # Sorted by name: the order of a source's own is that of an archive or a file system.
            broken.sort()
            if broken and settings.on_error == "fail":
                raise _broken_error(broken, defects, total + len(source.problems))
            base.about |= {"defects": len(broken), "ignored": len(source.ignored)}
            for file, lines in (("defects.txt", [f"{n}: {why}" for n, why in broken]), ("ignored.txt", source.ignored)):
                base.write_text(file, lines)
    finally:
        # An error leaves the generator half-way, with decoding threads at work.
        blocks.close()
    return {**base.counts, "defects": len(broken)}


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


def _decoded(items: Iterator[Item], settings: BuildSettings) -> Generator[list[Decoded]]:
    """Chunks decoded in threads, in order; a few chunks are under way at a time, whatever the source's size."""
    # Threads, not processes: Pillow's decoders release the interpreter's lock, and no image has to be sent anywhere.

    def work(chunk: list[Item]) -> list[Decoded]:
        return [(name, row, _pixels(content, settings)) for name, row, content in chunk]

    threads = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    pending: deque[Future[list[Decoded]]] = deque()
    with ThreadPoolExecutor(threads) as pool, warnings.catch_warnings():
        # Pillow warns about what `decode` refuses.
        warnings.simplefilter("ignore", Image.DecompressionBombWarning)
        # Twice as many chunks as threads: none waits for the next one to be read, and memory stays bounded.
        for chunk in _chunks(items):
            pending.append(pool.submit(work, chunk))
            if len(pending) > 2 * threads:
                yield pending.popleft().result()
        while pending:
            yield pending.popleft().result()


def _chunks(items: Iterator[Item]) -> Iterator[list[Item]]:
    """Items in tasks of `CHUNK` images or `CHUNK_BYTES`, whichever is reached first."""
    chunk: list[Item] = []
    size = 0
    for item in items:
        chunk.append(item)
        size += len(item[2])
        if len(chunk) == CHUNK or size >= CHUNK_BYTES:
            yield chunk
            chunk, size = [], 0
    if chunk:
        yield chunk


def _pixels(content: bytes | Images | str, settings: BuildSettings) -> Images | str:
    """An image's pixels in the size asked for, or the reason why it has none."""
    if isinstance(content, str):
        return content
    try:
        if isinstance(content, bytes):
            return decode(content, settings.image_size, settings.resize)
        return resized(content, settings.image_size, settings.resize)
    except DefectError as defect:
        return str(defect)


def _check_shape(shape: tuple[int, int, int], image: Images, name: str) -> None:
    if image.shape != shape:
        sizes = [f"{s[1]}x{s[0]}" for s in (shape, image.shape)]
        raise ParameterError(
            f"image_size: null given, but images differ in size ({sizes[0]}, and {name} is {sizes[1]}); "
            "allowed: a number of pixels per side"
        )


def _broken_error(broken: list[tuple[str, str]], path: Path, total: int) -> UserError:
    with new_file(path) as staging:
        staging.write_text("".join(f"{name}: {why}\n" for name, why in broken), encoding="utf-8")
    named = ", ".join(f"{name} ({why})" for name, why in broken[:NAMED])
    more = f" and {len(broken) - NAMED} more" if len(broken) > NAMED else ""
    return ParameterError(
        f"path: {len(broken)} of {total} files cannot be used: {named}{more}; all of them are listed in {path}; "
        "allowed: whole images, or on_error: skip"
    )
