"""The board as a page: `reports/board/index.html`, one self-contained file, `index.md` and `board.csv`."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Sequence
from pathlib import Path

from ..reporting import escaping
from ..reporting.page import Page, Table
from ..suites.record import cell as csv_cell
from ..suites.record import csv_text, write_text
from .board import Board
from .cells import Attack, Cell, Map, maps_of
from .families import FAMILIES
from .verdict import beside_others

FOLDER = Path("reports", "board")
# Bad, neither, good: orange and teal differ for all kinds of colour vision, and in brightness from the middle.
_COLOURS = ((224, 122, 72), (250, 243, 232), (92, 170, 160))
_STYLE = """<style>
.board td { padding: 0; text-align: center; min-width: 3.2rem; border: 1px solid var(--back); }
.board td.figure { padding: .3rem .5rem; text-align: right; white-space: nowrap; }
.board th.attack { writing-mode: vertical-rl; transform: rotate(180deg); text-align: left; padding: .4rem .3rem; }
.board button { all: unset; box-sizing: border-box; display: block; width: 100%; padding: .3rem .2rem; cursor: pointer;
  color: #1d2430; font-size: .85rem; text-align: center; }
.board button:focus-visible { outline: 3px solid var(--focus); }
.board button.idle { color: var(--soft); } .board .none { color: var(--soft); }
.board b { font-weight: 700; }
[popover] { color: var(--ink); background: var(--back); border: 1px solid var(--soft); border-radius: 6px; padding: 1rem;
  max-width: 34rem; font-size: .9rem; } [popover] p { margin: .3rem 0; }
</style>"""


def write_board(root: Path, board: Board, scale: str) -> Path:
    """Write the page, its Markdown and its table, from the suites and their records alone; the path of the page."""
    maps = maps_of(board, scale, root)
    folder = root / folder_of(board, scale)
    folder.mkdir(parents=True, exist_ok=True)
    page = board_page(board, scale, maps)
    write_text(folder / "board.csv", table_csv(maps))
    write_text(folder / "index.md", page.markdown())
    write_text(folder / "index.html", page.html())
    return folder / "index.html"


def folder_of(board: Board, scale: str) -> Path:
    """Where the page of a scale lies, from the top of the repository: that of the board's first scale above the others."""
    return FOLDER if scale == next(iter(board.scales)) else FOLDER / scale


def board_page(board: Board, scale: str, maps: Sequence[Map]) -> BoardPage:
    """The page of a scale's maps."""
    page = BoardPage(board.title)
    page.style()
    rule = board.solved
    page.text(
        f"Scale {scale}. Each cell is a method against an attack. A model's cell shows its ASR and is solved (✓) with at most "
        f"{rule.asr:g} of it, at most {rule.acc_drop:g} of the victim's ACC lost and an RA at most {rule.ra_drop:g} below its own "
        f"ACC. A detector's cell shows AUROC and is solved with a TPR of {rule.tpr:g} or more at 1 % FPR; an inspector's with the "
        f"target flagged and no other class. † marks an attack that the victim has not learned (ASR below {board.taken:g}); such "
        "cells count nowhere. An empty cell was not run; a dot stands where no suite has the method with this attack."
    )
    page.text("A click on a cell opens its numbers, with the suite and the commit they are from.", both=False)
    page.table(summary(board, maps))
    for data_set in dict.fromkeys((found.data_set, found.data) for found in maps):
        here = [found for found in maps if (found.data_set, found.data) == data_set]
        page.heading(data_set[0])
        page.text(_where(board, scale, data_set, here))
        if said := beside_others(here):
            page.text(said)
        table = victims(board, here)
        if table.rows:
            page.table(table)
        for found in here:
            if found.measured:
                for rate in sorted(board.rates, reverse=True):
                    if any(cell.figures for (_, (_, at)), cell in found.cells.items() if at == rate):
                        page.heat_map(board, found, rate)
                    else:
                        page.text(f"{found.family.title}, {rate:.0%} poisoned: not run.")
            elif any(cell.suite for cell in found.cells.values()):
                page.text(f"{found.family.title}: not run.")
    return page


def summary(board: Board, maps: Sequence[Map]) -> Table:
    """A row for each family and data set: cells measured, and the methods that solve most."""
    rows = []
    for found in maps:
        # A cell that no suite has is none of the board's yet.
        wanted = [cell for cell in found.cells.values() if cell.suite]
        if not wanted:
            continue
        counts = {method: _solved(found, method, board.rates, board.attacks) for method in found.family.methods}
        best = sorted((m for m, (_, n) in counts.items() if n), key=lambda m: (-counts[m][0], -counts[m][1], m))[:3]
        named = ", ".join(f"{m} {counts[m][0]} of {counts[m][1]}" for m in best)
        rows.append([found.family.title, found.data_set, f"{found.measured} of {len(wanted)}", named or "–"])
    return Table(["family", "data", "cells measured", "solved most"], rows, frozenset({0, 1, 3}))


def victims(board: Board, maps: Sequence[Map]) -> Table:
    """ACC / ASR of the undefended model, a row for each rate and suite that has it: suites may differ in their victims."""
    found: dict[tuple[float, str], dict[str, str]] = {}
    for cells in (found.cells for found in maps):
        for (_, (attack, rate)), cell in cells.items():
            if {"acc", "asr"} <= cell.victim.keys():
                row = found.setdefault((rate, cell.suite), {})
                row[attack] = f"{cell.victim['acc']:.3f} / {cell.victim['asr']:.3f}"
    rows = [
        [f"{rate:.0%}, {suite}", *(found[rate, suite].get(attack, "–") for attack in board.attacks)]
        for rate, suite in sorted(found, key=lambda key: (-key[0], key[1]))
    ]
    return Table(["victim: ACC / ASR", *board.attacks], rows)


def _where(board: Board, scale: str, data_set: tuple[str, str], maps: Sequence[Map]) -> str:
    about = board.data_sets(scale)[data_set[0]]
    labels = {f"{name}: {board.suites[name].scales[of_suite].label}" for name, of_suite in about.suites.items()}
    runs = {id(run): run for found in maps for cell in found.cells.values() for run in cell.runs}.values()
    devices = sorted({f"{run.device}, torch {run.torch}" for run in runs})
    seconds = sum(run.seconds or 0 for run in runs)
    parts = [f"Data: {data_set[1] or 'not run'}", "; ".join(sorted(labels))]
    if runs:
        parts.append(
            f"{len(runs)} runs, {seconds / 3600:.1f} hours (a stage from the cache takes none), on {'; '.join(devices)}"
        )
    if about.source:
        parts.append(f"published figures beside ours: {about.source}")
    return ". ".join(parts) + "."


def _solved(found: Map, method: str, rates: Iterable[float], attacks: Iterable[str]) -> tuple[int, int]:
    """Cells of a method that are solved, and those that count."""
    verdicts = [found.cells[method, (attack, rate)].solved for rate in rates for attack in attacks]
    return sum(bool(verdict) for verdict in verdicts), sum(verdict is not None for verdict in verdicts)


def _cost(found: Map, method: str) -> str:
    """A method's mean cost over all its cells, where the runs have counted it."""
    figure, _ = found.family.cost
    costs = [
        cell.figures[figure] for (name, _), cell in found.cells.items() if name == method and figure in cell.figures
    ]
    if not costs:
        return "–"
    mean = statistics.fmean(costs)
    if mean < 1000:
        return f"{mean:.3g}"
    return f"{mean / 1000:,.1f} k" if mean < 10_000 else f"{mean / 1000:,.0f} k"


class BoardPage(Page):
    """A page with heat maps, whose cells open the numbers behind them without a script."""

    _number = 0

    def style(self) -> None:
        self._html.append(_STYLE)

    def heat_map(self, board: Board, found: Map, rate: float) -> None:
        """A family's methods down the page and the attacks across, at one rate."""
        family, columns = found.family, [(attack, rate) for attack in board.attacks]
        title = f"{family.title}, {rate:.0%} poisoned: {family.shown_in_words}"
        costs = {method: _cost(found, method) for method in family.methods}
        cost = any(value != "–" for value in costs.values())
        heads = [*(attack for attack in board.attacks), "solved", *([family.cost[1]] if cost else [])]
        rows, body = [], []
        for method in family.methods:
            cells = [found.cells[method, column] for column in columns]
            won, counted = _solved(found, method, [rate], board.attacks)
            ends = [f"{won} of {counted}" if counted else "–", *([costs[method]] if cost else [])]
            rows.append([method, *(shown(cell, family.shown) for cell in cells), *ends])
            drawn = "".join(
                self._cell(found, method, column, cell) for column, cell in zip(columns, cells, strict=True)
            )
            figures = "".join(f'<td class="figure">{escaping.html(end)}</td>' for end in ends)
            body.append(f'<tr><th scope="row" class="text">{escaping.html(method)}</th>{drawn}{figures}</tr>')
        head = '<th scope="col">method</th>' + "".join(
            f'<th scope="col" class="attack">{escaping.html(text)}</th>' for text in heads
        )
        self._html.append(f"<h3>{escaping.html(title)}</h3>")
        table = f"<table><thead><tr>{head}</tr></thead><tbody>{''.join(body)}</tbody></table>"
        self._html.append(
            f'<div class="scroll board" role="region" tabindex="0" aria-label="{escaping.html(title)}">{table}</div>'
        )
        self._markdown.append(f"### {escaping.markdown(title)}")
        self._markdown.append(Table(["method", *heads], rows).markdown())

    def _cell(self, found: Map, method: str, attack: Attack, cell: Cell) -> str:
        if not cell.suite and not cell.published:
            return '<td class="none">·</td>'
        self._number += 1
        name, value = f"c{self._number}", cell.figures.get(found.family.shown)
        lines = "".join(f"<p>{escaping.html(line)}</p>" for line in opened(found, method, attack, cell))
        text = escaping.html(shown(cell, found.family.shown) or "not run")
        face = f"<b>{text}</b>" if cell.solved else text
        colour = (
            "" if value is None or not cell.taken else f' style="background:{_colour(value, found.family.low_is_good)}"'
        )
        kind = "" if colour else ' class="idle"'
        label = escaping.html(f"{method} against {attack[0]} at {attack[1]:.0%}: {text}")
        inside = f"{face if value is not None else ''}&#8203;"
        button = f'<button{kind} popovertarget={name} aria-label="{label}">{inside}</button>'
        return f"<td{colour}>{button}<div id={name} popover>{lines}</div></td>"


def shown(cell: Cell, figure: str) -> str:
    """What a cell shows: its figure, whether it is solved, and whether the attack took; "" where it was not run."""
    if figure not in cell.figures:
        return "" if cell.suite else "·"
    value = cell.figures[figure]
    return f"{value:.2f}" + ("†" if cell.taken is False else " ✓" if cell.solved else "")


def opened(found: Map, method: str, attack: Attack, cell: Cell) -> list[str]:
    """The numbers behind a cell, in lines."""
    lines = [f"{method} against {attack[0]}, {attack[1]:.0%} poisoned"]
    if cell.figures:
        figures = [
            f"{name} {value:{',.0f' if value >= 1000 else '.4g'}}"
            + (f" ± {cell.spread[name]:.3f}" if name in cell.spread else "")
            for name, value in cell.figures.items()
        ]
        lines.append(", ".join(figures))
        lines.append("victim: " + ", ".join(f"{name} {value:.3f}" for name, value in cell.victim.items()))
        said = {True: "solved", False: "not solved", None: "does not count"}[cell.solved]
        why = {True: "", False: ": the victim has not learned the attack", None: ": the victim's ASR is not on record"}
        lines.append(said + why[cell.taken])
    else:
        lines.append("not run" if cell.suite else "no suite has it")
    if cell.published:
        lines.append("published: " + ", ".join(f"{name} {value:.3f}" for name, value in cell.published.items()))
    if cell.runs:
        commits = ", ".join(sorted({run.commit for run in cell.runs}))
        seeds = ", ".join(str(run.seed) for run in cell.runs)
        lines.append(f"suite {cell.suite}, scale {cell.scale}, seeds {seeds}, commit {commits}")
    if cell.suite:
        lines.append(f"make suite SUITE={cell.suite} SCALE={cell.scale} EXPERIMENTS={attack[0]}-{attack[1]:g}")
    return lines


def _colour(value: float, low_is_good: bool) -> str:
    """From bad to good: of a share from 1 to 0, of an AUROC from 0.5, which is chance, to 1."""
    good = 1 - value if low_is_good else max(0.0, 2 * value - 1)
    position = min(1.0, max(0.0, good)) * 2
    low, high = (_COLOURS[0], _COLOURS[1]) if position <= 1 else (_COLOURS[1], _COLOURS[2])
    share = position if position <= 1 else position - 1
    return "#" + "".join(f"{round(a + (b - a) * share):02x}" for a, b in zip(low, high, strict=True))


def table_csv(maps: Sequence[Map]) -> str:
    """All cells for programs: a line each, empty where there is no figure."""
    figures = sorted({figure for family in FAMILIES for figure in family.figures})
    header = ["data_set", "data", "family", "method", "attack", "rate", "suite", "scale", "runs", "taken", "solved"]
    header += ["victim_acc", "victim_asr", *figures, *(f"published_{name}" for name in ("acc", "asr", "ra"))]
    body = [
        [
            *map(escaping.spreadsheet, (found.data_set, found.data, found.family.place, method, attack[0])),
            csv_cell(attack[1]),
            cell.suite,
            cell.scale,
            str(len(cell.runs)),
            *("" if said is None else str(int(said)) for said in (cell.taken, cell.solved)),
            *(csv_cell(cell.victim.get(name)) for name in ("acc", "asr")),
            *(csv_cell(cell.figures.get(name)) for name in figures),
            *(csv_cell(cell.published.get(name)) for name in ("acc", "asr", "ra")),
        ]
        for found in maps
        for (method, attack), cell in found.cells.items()
    ]
    return csv_text([header, *body])
