"""`board.yaml`: which attacks and rates the board has, which suites fill it, and when a cell counts as solved."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..core.errors import ParameterError, UserError, file_of, keys_of
from ..core.files import open_file
from ..core.hyperparameters import Fraction, check
from ..suites.reading import NAME, NAMES_ALLOWED, read_suite
from ..suites.suite import Suite
from ..suites.yaml_file import LARGEST, read_yaml

FILE = "board.yaml"


@dataclass(frozen=True, kw_only=True)
class Solved:
    """When a cell is solved.

    Attributes:
        asr, acc_drop, ra_drop: of a model: at most this ASR, at most this much of the victim's ACC lost, and an RA at most this
            far below the model's own ACC, as an attack may go on under another label.
        tpr: of scores: at least this share of the poisoned samples above the threshold that 1 % of the clean ones exceed.
    """

    asr: Fraction
    acc_drop: Fraction
    ra_drop: Fraction
    tpr: Fraction


@dataclass(frozen=True, kw_only=True)
class DataSet:
    """The suites of one data set, by name the scale that each is run at, in the order in which a cell is looked for in them.

    Attributes:
        published: table of published figures (CSV: attack, method, rate, acc, asr, ra), from the top of the repository; "": none.
        source: where it is from.
    """

    suites: dict[str, str]
    published: str = ""
    source: str = ""


@dataclass(frozen=True, kw_only=True)
class Keys:
    """The keys of `board.yaml`; blocks in them are checked one by one."""

    title: str
    attacks: list[str]
    rates: list[Fraction]
    taken: Fraction
    solved: dict[str, Any]
    scales: dict[str, dict[str, dict[str, Any]]]


@dataclass(frozen=True, kw_only=True)
class Board:
    """The board.

    Attributes:
        attacks: names of experiments, in their order across the page, and in which they are run.
        rates: shares of poisoned samples, in the order in which they are run.
        taken: ASR of the victim from which an attack counts.
        scales: by name the data sets of that size, by title.
        suites: those that the scales name.
    """

    title: str
    attacks: list[str]
    rates: list[float]
    taken: float
    solved: Solved
    scales: dict[str, dict[str, DataSet]]
    suites: dict[str, Suite]

    def data_sets(self, scale: str) -> dict[str, DataSet]:
        """The data sets of a scale, by title. Raises UserError where there is none of that name."""
        if scale not in self.scales:
            raise UserError(f"SCALE: {scale!r} given, allowed: {', '.join(self.scales)}")
        return self.scales[scale]


def read_board(root: Path) -> Board:
    """The board of a repository, with its suites.

    Raises:
        UserError: the first thing in `board.yaml`, or in a suite that it names, that is wrong.
    """
    with open_file(root / FILE) as file:
        values = read_yaml(file.read(LARGEST + 1), FILE)
    with file_of(FILE):
        keys = Keys(**check(values, Keys))
        with keys_of("solved"):
            solved = Solved(**check(keys.solved, Solved))
        for key in ("attacks", "rates", "scales"):
            given = getattr(keys, key)
            if not given or (isinstance(given, list) and len(set(given)) < len(given)):
                raise ParameterError(f"{key}: {given!r} given, allowed: at least one, each once")
        # The page of a scale lies in a folder of its name.
        if wrong := [scale for scale in keys.scales if not NAME.fullmatch(scale)]:
            raise ParameterError(f"scales: {wrong[0]!r} given as a name, {NAMES_ALLOWED}")
        scales = {scale: _data_sets(sets, f"scales.{scale}") for scale, sets in keys.scales.items()}
    named = dict.fromkeys(name for sets in scales.values() for data_set in sets.values() for name in data_set.suites)
    suites = {name: read_suite(name, root / "suites") for name in named}
    with file_of(FILE):
        for scale, sets in scales.items():
            for title, data_set in sets.items():
                _check_scales(data_set, f"scales.{scale}.{title}", suites)
        experiments = {experiment.name for suite in suites.values() for experiment in suite.experiments.values()}
        if unknown := [attack for attack in keys.attacks if attack not in experiments]:
            raise ParameterError(f"attacks: {unknown[0]!r} given, allowed: experiments of the suites")
    return Board(
        title=keys.title,
        attacks=keys.attacks,
        rates=keys.rates,
        taken=keys.taken,
        solved=solved,
        scales=scales,
        suites=suites,
    )


def _data_sets(sets: dict[str, dict[str, Any]], where: str) -> dict[str, DataSet]:
    found = {}
    for title, block in sets.items():
        with keys_of(f"{where}.{title}"):
            found[title] = DataSet(**check(block, DataSet))
            if bool(found[title].published) != bool(found[title].source):
                raise ParameterError("source: allowed: where the figures of published are from, and with them alone")
    return found


def _check_scales(data_set: DataSet, where: str, suites: dict[str, Suite]) -> None:
    for name, scale in data_set.suites.items():
        if scale not in suites[name].scales:
            raise ParameterError(f"{where}.suites.{name}: {scale!r} given, allowed: {', '.join(suites[name].scales)}")
        if suites[name].vary != "attack.poison_rate":
            raise ParameterError(f"{where}.suites: {name!r} given, allowed: suites that vary attack.poison_rate")
