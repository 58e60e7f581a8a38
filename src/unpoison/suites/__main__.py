"""Run a published table, print it, mend its record, draw its triggers or curves: `python -m unpoison.suites run NAME`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ..core.command_line import one_line_errors
from ..reporting.escaping import say
from .git import Repository
from .reading import path_of
from .record import repair
from .run import run
from .table import write_table


def main(arguments: Sequence[str] | None = None) -> None:
    """Raises SystemExit with one line for what the user can put right; `arguments` None: those of the command line."""
    given = _parser().parse_args(arguments)
    with one_line_errors(given.name, again="the same command goes on where it stopped"):
        repository = Repository.here()
        if given.command == "run":
            chosen = {"only": given.experiments, "fresh": given.fresh, "jobs": given.jobs}
            run(repository, given.name, given.scale, given.data, **chosen)
        elif given.command == "table":
            say(write_table(repository, given.name), end="")
        elif given.command == "repair":
            path_of(given.name, repository.suites)
            record = repository.report(f"{given.name}.runs.csv")
            with repository.locked():
                line = repair(record)
            say(f"{record.relative_to(repository.root)}: {f'taken away: {line}' if line else 'no line is cut off'}")
        elif given.command == "curves":
            from .curves import draw  # matplotlib, which the other commands do without

            for path in draw(repository, given.name):
                say(f"wrote {path.relative_to(repository.root)}")
        else:
            from .sheet import sheet  # torch and matplotlib, which the other commands do without

            path = sheet(repository, given.name, given.scale, given.data, only=given.experiments, images=given.images)
            say(f"wrote {path.relative_to(repository.root)}")


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m unpoison.suites", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    runner = commands.add_parser("run", help="make the runs that do not exist yet")
    table = commands.add_parser("table", help="print and write the table")
    mender = commands.add_parser("repair", help="take a last line that is cut off out of the record of runs")
    drawer = commands.add_parser("sheet", help="draw every trigger on the same images")
    curves = commands.add_parser("curves", help="draw ACC and ASR against what the suite varies")
    for command in (runner, table, mender, drawer, curves):
        command.add_argument("name", help="suites/NAME.yaml")
    for command in (runner, drawer):
        command.add_argument("--scale", help="one of the suite's, the first if not given")
        command.add_argument("--data", help="a folder or archive of images, in the place of the suite's data set")
        command.add_argument("--experiments", nargs="+", default=[], metavar="NAME", help="only these")
    runner.add_argument("--fresh", action="store_true", help="make all runs again, without the cache")
    runner.add_argument("--jobs", type=int, default=1, help="make so many runs at a time")
    drawer.add_argument("--images", type=int, default=3, help="how many images")
    return parser


if __name__ == "__main__":
    main()
