"""Scan a folder or archive of images for planted samples, or export it without them: `python -m unpoison.scan run photos.zip`."""

from __future__ import annotations

import argparse
import csv
from collections.abc import Sequence
from pathlib import Path

from ..core.command_line import one_line_errors
from ..core.errors import UserError
from ..reporting.escaping import say
from ..sources.folder import open_folder
from ..workflow import run_stages
from .export import export
from .rules import Survey, batch_of, detectors_of, epochs_of, overrides_of, survey

LEARNED, LONGER = 0.8, 2
"""Share of the labels that the network has to learn, and how often the training is doubled until it has."""
CURVE = Path("reports/training/backdoored.csv")
ANSWER = Path("reports/answer.txt")
FILES = ("reports/index.html", "reports/suspects.csv", "reports/problems.csv")


def main(arguments: Sequence[str] | None = None) -> None:
    """Raises SystemExit with one line for what the user can put right; `arguments` None: those of the command line."""
    given = _parser().parse_args(arguments)
    with one_line_errors(given.command, again="the same command goes on with the stages that are not done"):
        if given.command == "run":
            scan(given.data, trusted=given.trusted, canary=not given.without_canary, plan_only=given.plan)
        else:
            say(export(given.data, given.to, given.form))


def scan(data: str, *, trusted: str | None = None, canary: bool = True, plan_only: bool = False) -> None:
    """Run the stages of a scan in this working copy and say what they found.

    Args:
        data: folder or archive of images.
        trusted: folder or archive of trusted images of the same classes; None: a reserve is drawn from the data.
        canary: whether to plant canaries, which takes a second training.
        plan_only: whether to end after the plan.

    Raises:
        UserError: data that cannot be scanned, found before any stage starts; or a stage that failed.
    """
    path, reserve = _existing("DATA", data), None if trusted is None else _existing("TRUSTED", trusted)
    found = survey(open_folder(path), path)
    epochs = epochs_of(found.total, len(found.classes))
    _show(found, trusted=reserve, epochs=epochs, canary=canary)
    if plan_only:
        return
    learned = 0.0
    for attempt in range(LONGER + 1):
        run_stages(overrides_of(found, trusted=reserve, epochs=epochs, canary=canary), ["train_backdoored"])
        learned = last_accuracy(CURVE)
        if learned >= LEARNED or attempt == LONGER:
            break
        epochs *= 2
        say(
            f"scan: {learned:.0%} of the labels learned, too few to see anything by; training again for {epochs} epochs"
        )
    run_stages(overrides_of(found, trusted=reserve, epochs=epochs, canary=canary), ["report"])
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


def _existing(name: str, given: str) -> Path:
    path = Path(given).absolute()
    if not given or not path.exists():
        raise UserError(f"{name}: {given!r} given, which does not exist; allowed: a folder or archive of images")
    return path


def _show(found: Survey, *, trusted: Path | None, epochs: int, canary: bool) -> None:
    """Say what the scan will do and about how long it takes."""
    # Here and not above: torch takes seconds to load, which no error of the command line should wait for.
    from .plan import measure, minutes_said, seconds

    side = found.sample.shape[1]
    parts = ", ".join(f"{count:,} {part}" for part, count in found.parts.items())
    sizes = f"{found.counts.min():,} to {found.counts.max():,} each"
    say(f"scan: {parts} images of {len(found.classes)} classes ({sizes}), of {found.side} px, scanned at {side} px")
    if others := [part for part in found.parts if part != "train"]:
        say(f"scan: the {found.parts['train']:,} training images are scored; {', '.join(others)} as named")
    say(
        f"scan: a ResNet-18 of width 16 for {epochs} epochs in batches of {batch_of(found.total)}"
        + (", and once more with canaries" if canary else ", without canaries: scores get no scale")
    )
    say(f"scan: detectors {', '.join(detectors_of(found.total, side))}")
    if trusted is None:
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
