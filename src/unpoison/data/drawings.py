"""A figure as an artefact: its pictures, what each shows in words, and the numbers behind them as tables."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from annotated_types import Len
from PIL import Image

from ..core.errors import UserError
from ..core.files import new_folder
from ..core.manifest import Described, Manifest, Name, check_describes, check_file, read_manifest, write_manifest

FORMAT, DESCRIPTION = "unpoison-figure-1", "figure.json"
MOST_BYTES, MOST_PIXELS = 16 << 20, 1 << 26
"""Of a picture that is read: whoever opens the page has to hold all of them."""


class PictureManifest(Described):
    """A picture as `figure.json` has it; the file is `NAME.png`."""

    name: Name
    caption: str
    wide: bool


class FigureManifest(Manifest):
    """What `figure.json` holds: the figure's name and parameters, how it is read, and its pictures."""

    figure: str
    parameters: dict[str, Any]
    caption: str
    pictures: Annotated[list[PictureManifest], Len(0, 1000)]


@dataclass(frozen=True, kw_only=True)
class Picture:
    """One picture of a figure.

    Attributes:
        name: name of its file, without the ending.
        png: the file.
        caption: what it shows, also for readers who do not see it.
        wide: whether it is shown as large as it is, and not beside others.
    """

    name: str
    png: bytes
    caption: str
    wide: bool = False


@dataclass(frozen=True, kw_only=True)
class Drawing:
    """What a figure consists of.

    Attributes:
        caption: how it is read, in words; of one that is left out, why.
        pictures: its pictures, none of one that is left out.
        tables: CSV text by the file's name without the ending.
    """

    caption: str
    pictures: list[Picture] = field(default_factory=list)
    tables: Mapping[str, str] = field(default_factory=dict)


def save_drawing(
    drawing: Drawing, folder: Path, *, figure: str, parameters: dict[str, Any], made_from: dict[str, str]
) -> None:
    """Write `figure.json`, the pictures and the tables.

    Args:
        drawing: what was drawn.
        folder: folder that is made or replaced.
        figure: the figure's name.
        parameters: its own parameters.
        made_from: digest by name of each artefact that was read.
    """
    with new_folder(folder) as staging:
        for picture in drawing.pictures:
            (staging / f"{picture.name}.png").write_bytes(picture.png)
        for name, text in drawing.tables.items():
            (staging / f"{name}.csv").write_text(text, encoding="utf-8", newline="\n")
        pictures = [{"name": one.name, "caption": one.caption, "wide": one.wide} for one in drawing.pictures]
        about = {"format": FORMAT, "figure": figure, "parameters": parameters, "caption": drawing.caption}
        write_manifest(staging, DESCRIPTION, {**about, "pictures": pictures, "made_from": made_from})


def load_drawing(folder: Path, *, figure: str | None = None) -> Drawing:
    """The words and the pictures that `save_drawing` wrote; tables are for people.

    Args:
        folder: folder of the artefact.
        figure: name that it must have; None: any.

    Raises:
        UserError: a file that is missing, changed or of another format, a picture that is no PNG or too large.
    """
    path, about = folder / DESCRIPTION, read_manifest(folder, DESCRIPTION, FORMAT, FigureManifest)
    check_describes(path, about, figure=figure)
    if len({one.name for one in about.pictures}) < len(about.pictures):
        raise UserError(f"{path}: pictures: a name is there twice, allowed: each once")
    pictures = [
        Picture(name=one.name, png=_read(folder, about, f"{one.name}.png"), caption=one.caption, wide=one.wide)
        for one in about.pictures
    ]
    return Drawing(caption=about.caption, pictures=pictures)


def _read(folder: Path, about: FigureManifest, name: str) -> bytes:
    """A picture's file, once it is found to be a whole PNG of a bearable size."""
    path = check_file(folder, about, name)
    if (size := path.stat().st_size) > MOST_BYTES:
        raise UserError(f"{path}: {size >> 20} MiB found, allowed: at most {MOST_BYTES >> 20} MiB")
    png = path.read_bytes()
    try:
        with Image.open(io.BytesIO(png), formats=["PNG"]) as image:
            width, height = image.size
            image.verify()
    # Not a list of errors: a damaged file brings others with every version.
    except Exception as error:
        raise UserError(f"{path}: not readable as a PNG picture ({error})"[:600]) from None
    if width * height > MOST_PIXELS:
        raise UserError(f"{path}: {width}x{height} px found, allowed: at most {MOST_PIXELS:,} pixels")
    return png
