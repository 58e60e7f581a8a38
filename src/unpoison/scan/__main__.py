"""Scan a folder or archive of images for planted samples, or export it without them: `python -m unpoison.scan run photos.zip`."""

from __future__ import annotations

import argparse
import csv
import os
from collections.abc import Sequence
from pathlib import Path

from ..core.command_line import one_line_errors
from ..core.errors import UserError
from ..reporting.escaping import say
from ..reporting.suspicion import LEARNED
from ..sources.folder import open_folder
from ..workflow import given_path, run_stages, working_copy
from .checks import check
from .export import export
from .rules import Survey, batch_of, detectors_of, epochs_of, overrides_of, survey

LONGER = 2
"""How often the training is doubled until the network has learned the labels."""
IMAGES = "a folder or archive of images"
CURVE = Path("reports/training/backdoored.csv")
ANSWER = Path("reports/answer.txt")
FILES = ("reports/index.html", "reports/suspects.csv", "reports/problems.csv")


def main(arguments: Sequence[str] | None = None) -> None:
    """Raises SystemExit with one line for what the user can put right; `arguments` None: those of the command line."""
    given = _parser().parse_args(arguments)
    if given.command == "run":
        with one_line_errors("DATA", again="the same command goes on with the stages that are not done"):
            path = given_path("DATA", given.data, IMAGES)
            trusted = given_path("TRUSTED", given.trusted, IMAGES) if given.trusted else None
            # The stages work in the root.
            os.chdir(working_copy())
            scan(path, trusted=trusted, canary=not given.without_canary, plan_only=given.plan)
    else:
        with one_line_errors("TO", again="nothing was written; the same command begins anew"):
            path, target = given_path("DATA", given.data, IMAGES), os.path.abspath(given.to) if given.to else ""
            os.chdir(working_copy())
            say(export(path, target, given.form))


def scan(path: Path, *, trusted: Path | None = None, canary: bool = True, plan_only: bool = False) -> None:
    """Run the stages of a scan in this working copy, whose root is the working directory, and say what they found.

    Args:
        path: folder or archive of images.
        trusted: folder or archive of trusted images of the same classes; None: a reserve is drawn from the data.
        canary: whether to plant canaries, which takes a second training.
        plan_only: whether to end after the plan.

    Raises:
        UserError: data that cannot be scanned, found before any stage starts; or a stage that failed.
    """
    found = survey(open_folder(path), path)
    check(found, trusted=trusted, canary=canary)
    epochs = epochs_of(found.total, len(found.classes))
    _show(found, trusted=trusted, epochs=epochs, canary=canary)
    if plan_only:
        return
    learned = 0.0
    for attempt in range(LONGER + 1):
        run_stages(overrides_of(found, trusted=trusted, epochs=epochs, canary=canary), ["train_backdoored"])
        learned = last_accuracy(CURVE)
        if learned >= LEARNED or attempt == LONGER:
            break
        epochs *= 2
        say(
            f"scan: {learned:.0%} of the labels learned, too few to see anything by; training again for {epochs} epochs"
        )
    run_stages(overrides_of(found, trusted=trusted, epochs=epochs, canary=canary), ["report"])
    say("")
    for line in ANSWER.read_text(encoding="utf-8").splitlines():
        say(line)
    for file in FILES:
        say(file)


def last_accuracy(curve: Path) -> float:
    """The share of the training labels that a model had learned at the end, from its curve.

    Raises:
        UserError: no such table, or no row in it.
    """
    try:
        with curve.open(encoding="utf-8", newline="") as file:
            return float([*csv.DictReader(file)][-1]["accuracy"])
    except (OSError, IndexError, KeyError, ValueError) as error:
        raise UserError(f"{curve}: no accuracy found ({error!r}); run the scan again") from None


def _show(found: Survey, *, trusted: Path | None, epochs: int, canary: bool) -> None:
    """Say what the scan will do and about how long it takes."""
    # Here and not above: torch takes seconds to load, which no error of the command line should wait for.
    from .canaries import kinds_of
    from .plan import measure, minutes_said, seconds

    side = found.sample.shape[1]
    parts = ", ".join(f"{count:,} {part}" for part, count in found.parts.items())
    sizes = f"{found.counts.min():,} to {found.counts.max():,} each"
    say(f"scan: {parts} images of {len(found.classes)} classes ({sizes}), of {found.side} px, scanned at {side} px")
    if others := [part for part in found.parts if part != "train"]:
        unused = [part for part in others if part == "public" or (part == "reserve" and trusted is not None)]
        used = [part for part in others if part not in unused]
        say(
            f"scan: the {found.parts['train']:,} training images are scored"
            + (f"; {', '.join(used)} as named" if used else "")
            + (f"; not used: {', '.join(unused)}" if unused else "")
        )
    say(
        f"scan: a ResNet-18 of width 16 for {epochs} epochs in batches of {batch_of(found.total)}"
        + (
            f", and once more with canaries ({', '.join(kinds_of(found.counts))})"
            if canary
            else ", without canaries: scores get no scale"
        )
    )
    say(f"scan: detectors {', '.join(detectors_of(found.total, side))}")
    if not found.vouched(trusted):
        say(
            "scan: no trusted images: a reserve is drawn from the data, which weakens what compares with it (strip); with "
            "TRUSTED=folder it need not be"
        )
    duration = seconds(found, measure(found), epochs=epochs, canary=canary)
    say(f"scan: {minutes_said(duration)} on this machine, by its first batches")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m unpoison.scan", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="scan a data set")
    run.add_argument("data", help="folder or archive of images, as in docs/data.md")
    run.add_argument("--trusted", help="folder or archive of trusted images of the same classes")
    run.add_argument(
        "--without-canary", action="store_true", help="no canaries: half the time, and scores without a scale"
    )
    run.add_argument("--plan", action="store_true", help="say what would be done, and end")
    writer = commands.add_parser("export", help="write the scanned set without what reports/removed.txt names")
    writer.add_argument("data", help="folder or archive that was scanned")
    writer.add_argument("to", help="folder that does not exist yet, or a .zip")
    writer.add_argument(
        "--form", choices=("copy", "link"), default="copy", help="link: hard links where the disk allows them"
    )
    return parser


if __name__ == "__main__":
    main()
