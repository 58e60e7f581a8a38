"""Make the runs that the board needs, or write its page from what is on record: `python -m unpoison.board make --scale cpu`."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from ..core.command_line import one_line_errors
from ..core.errors import UserError
from ..reporting.escaping import say
from ..suites.git import Repository
from .board import read_board
from .order import make, needed
from .page import write_board


def main(arguments: Sequence[str] | None = None) -> None:
    """Raises SystemExit with one line for what the user can put right; `arguments` None: those of the command line."""
    given = _parser().parse_args(arguments)
    with one_line_errors("board", again="the same command goes on where it stopped"):
        repository = Repository.here()
        board = read_board(repository.root)
        scale = given.scale or next(iter(board.scales))
        if given.command == "make":
            make(repository, board, scale, _pairs(given.data), most=given.most, jobs=given.jobs)
        elif given.command == "plan":
            todo = needed(board, scale, repository.root)
            for need in todo:
                say(
                    f"{need.row.name(board.suites[need.suite])}: {board.suites[need.suite].scales[need.row.scale].cost}"
                )
            say(f"board, scale {scale}: {len(todo)} runs to make")
            return
        say(f"wrote {write_board(repository.root, board, scale).relative_to(repository.root)}")


def _pairs(given: Sequence[str]) -> dict[str, str]:
    pairs = {}
    for text in given:
        title, equals, path = text.partition("=")
        if not (title and equals and path):
            raise UserError(f"DATA: {text!r} given, allowed: TITLE=PATH, the title of a data set of the board")
        pairs[title] = path
    return pairs


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m unpoison.board", description=__doc__)
    commands = parser.add_subparsers(dest="command", required=True)
    maker = commands.add_parser("make", help="make the runs that no record has, and write the page after each")
    commands.add_parser("plan", help="list these runs in their order")
    commands.add_parser("page", help="write the page from the records")
    for command in commands.choices.values():
        command.add_argument("--scale", help="one of the board's, the first if not given")
    maker.add_argument(
        "--data", nargs="+", default=[], metavar="TITLE=PATH", help="a folder or archive of images for a data set"
    )
    maker.add_argument("--most", type=int, help="make at most this many runs")
    maker.add_argument("--jobs", type=int, default=1, help="make so many runs at a time")
    return parser


if __name__ == "__main__":
    main()
