"""Audit a checkpoint of unknown origin with a few images: `make audit MODEL=model.safetensors DATA=photos.zip`."""

from __future__ import annotations

import argparse
import os
from collections.abc import Sequence

from ..core.command_line import one_line_errors
from ..core.errors import UserError
from ..reporting.escaping import say
from ..workflow import given_path, working_copy
from .command import Given, audit

MODELS = "a checkpoint, or a model folder; make audit MODEL=model.safetensors DATA=photos.zip"
IMAGES = "a folder or archive of images"


def main(arguments: Sequence[str] | None = None) -> None:
    """Raises SystemExit with one line for what the user can put right; `arguments` None: those of the command line."""
    given = _parser().parse_args(arguments)
    with one_line_errors("MODEL", again="the same command goes on where it stopped"):
        wanted = Given(
            image_size=_whole("IMAGE_SIZE", given.image_size),
            mean=_numbers("MEAN", given.mean),
            std=_numbers("STD", given.std, positive=True),
            network=given.network,
            classes=tuple(filter(None, given.classes.split(","))),
            model=given_path("MODEL", given.model, MODELS),
            data=given_path("DATA", given.data, IMAGES),
            trusted=given_path("TRUSTED", given.trusted, IMAGES) if given.trusted else None,
        )
        # The stages work in the root.
        os.chdir(working_copy())
        say(f"\n{audit(wanted)}\n\nreport: reports/index.html")


def _whole(key: str, given: str) -> int | None:
    if not given:
        return None
    if not given.isdecimal() or not 8 <= int(given) <= 1 << 14:
        raise UserError(f"{key}: {given!r} given, allowed: pixels per side, from 8 to {1 << 14}")
    return int(given)


def _numbers(key: str, given: str, *, positive: bool = False) -> tuple[float, ...] | None:
    """Numbers with commas between them; one stands for all three channels."""
    if not given:
        return None
    try:
        values = tuple(map(float, given.split(",")))
    except ValueError:
        values = ()
    if len(values) not in (1, 3) or not all(abs(value) < 1e6 and (value > 1e-6 or not positive) for value in values):
        raise UserError(
            f"{key}: {given!r} given, allowed: one number or three with commas between them, for images in [0, 1]"
        )
    return values if len(values) == 3 else values * 3


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m unpoison.audit", description=__doc__)
    parser.add_argument(
        "--model", default="", help="a .safetensors, .pt or .pth file, or a model folder of this project"
    )
    parser.add_argument("--data", default="", help="a folder or archive of images in a folder for each class")
    parser.add_argument("--network", default="", help="'torchvision:resnet18' or 'resnet18 width=16 stem=conv3_pool'")
    parser.add_argument(
        "--image-size", default="", help="pixels per side; else those of the images, which all have one size"
    )
    parser.add_argument("--mean", default="", help="mean of each channel, '0.485,0.456,0.406'")
    parser.add_argument("--std", default="", help="standard deviation of each channel")
    parser.add_argument("--classes", default="", help="names with commas between them, in the order of the outputs")
    parser.add_argument(
        "--trusted", default="", help="a folder or archive of trusted images, in the place of a part of DATA"
    )
    return parser


if __name__ == "__main__":
    main()
