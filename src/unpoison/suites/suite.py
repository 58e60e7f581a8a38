"""A suite: a published table, the experiments that reproduce it, and the scales they are run at."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field
from typing import Any, Literal

from ..core.errors import UserError
from ..core.files import sha256_json
from ..core.hyperparameters import Fraction, Whole

METRICS = ("acc", "asr", "ra")
MetricName = Literal["acc", "asr", "ra"]
Overrides = dict[str, Any]
"""A parameter's key to its value: `attack.poison_rate` of params.yaml, `params/attacks.yaml:badnets.size` of another file."""


@dataclass(frozen=True, kw_only=True)
class Published:
    """Published figures, fractions in [0, 1]; `source` is a key of the suite's sources."""

    source: str
    acc: Fraction | None = None
    asr: Fraction | None = None
    ra: Fraction | None = None

    @property
    def figures(self) -> dict[str, float]:
        given = {metric: getattr(self, metric) for metric in METRICS}
        return {metric: value for metric, value in given.items() if value is not None}


@dataclass(frozen=True, kw_only=True)
class Method:
    """Where a method's figures lie in `metrics.json` (`purified.ft`), and why none are published where none are."""

    metrics: str
    unpublished: str = ""


@dataclass(frozen=True, kw_only=True)
class Column:
    """A further column of the table: a figure's name in the record, and how it is written (`.1%`)."""

    metric: str
    form: str = ".3f"


@dataclass(frozen=True, kw_only=True)
class Figures:
    """Published figures of a row of a matrix, by column; `source` is a key of the suite's sources."""

    source: str
    figures: dict[str, Fraction]


@dataclass(frozen=True, kw_only=True)
class Matrix:
    """A further table, of one figure with a column per method.

    Attributes:
        metric: the figure's name in the record, with a `*` for the method's.
        lower_is_better: whether the worst of a column is its largest figure.
        rows: what goes down the page, `attacks` or `methods`; the other goes across.
        published: rows of published figures by their titles, of a matrix with attacks down the page.
    """

    metric: str
    lower_is_better: bool = False
    rows: Literal["attacks", "methods"] = "attacks"
    published: dict[str, Figures] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Solved:
    """A count of the attacks that each method solves, and its mean figures over them.

    Attributes:
        methods: where a method's figures lie in the record, with a `*` for its name (`purified.*`).
        asr: an attack is solved with at most this ASR, and
        acc_drop: with at most this much of the first method's ACC lost, and
        ra_drop: with an RA at most this much below the method's own ACC: an attack may go on under another label. None: any RA.
        columns: further mean figures by heading; a figure's name is that below the method's.
    """

    methods: str
    asr: Fraction
    acc_drop: Fraction
    ra_drop: Fraction | None = None
    columns: dict[str, Column] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Experiment:
    """What is run, once per seed.

    Attributes:
        name: in the suite's file.
        value: of the parameter that the suite varies, "" where it varies none.
        place: of this value among the experiment's values, from 0.
        set: its overrides, the varied parameter among them.
        published: what is published of it, by method.
    """

    name: str
    value: str = ""
    place: int = 0
    set: Overrides
    published: dict[str, Published]


@dataclass(frozen=True, kw_only=True)
class Scale:
    """One size the table is run at.

    Attributes:
        label: what the size is, in words; every line of the table says it.
        seeds: one run per experiment and seed.
        cost: estimate of what its runs cost, in words.
        set: overrides of every run at this scale.
        set_for: further overrides by value of what the suite varies.
        why: why its figures deviate from the published ones.
        reasons: the same for one line, by `EXPERIMENT.METHOD`.
    """

    label: str
    seeds: list[Whole]
    cost: str
    set: Overrides = field(default_factory=dict)
    set_for: dict[str | float, Overrides] = field(default_factory=dict)
    why: str = ""
    reasons: dict[str, str] = field(default_factory=dict)


@dataclass(frozen=True, kw_only=True)
class Suite:
    """A published table.

    Attributes:
        protocol: what differs from the published protocol, in words.
        tolerances: by metric, absolute, in the metrics' own unit; empty where published figures stand for orientation.
        vary: the key of the parameter that makes several experiments of one, "" where none does.
        columns: further columns of the table by heading.
        matrices: further tables by title.
        solved: a count of the attacks that each method solves; None: without.
        taken: ASR of the first method from which an attack counts in the matrices' means and worst cases; None: all do.
        experiments: by the name that runs and record use: `badnets`, or with a varied parameter `badnets-0.1`.
    """

    name: str
    title: str
    sources: dict[str, str]
    protocol: list[str]
    tolerances: dict[str, float]
    set: Overrides
    vary: str
    columns: dict[str, Column]
    matrices: dict[str, Matrix]
    solved: Solved | None
    taken: float | None
    methods: dict[str, Method]
    experiments: dict[str, Experiment]
    scales: dict[str, Scale]

    def overrides(self, scale: str, experiment: str) -> Overrides:
        """An experiment's override comes before its scale's, and that before the suite's."""
        about, own = self.scales[scale], self.experiments[experiment]
        of_value = {str(value): overrides for value, overrides in about.set_for.items()}.get(own.value, {})
        return {**self.set, **about.set, **of_value, **own.set}

    def settings(self, scale: str, experiment: str) -> str:
        """Eight digits that change with the overrides; not with the data set, which the command line may replace."""
        overrides = self.overrides(scale, experiment)
        return sha256_json({key: value for key, value in overrides.items() if key != "data.name"})[:8]

    def reason(self, scale: str, experiment: str, method: str) -> str:
        """Why a line deviates, in the suite's words: of the experiment, of all its values, or of the whole scale."""
        about = self.scales[scale]
        names = (experiment, self.experiments[experiment].name)
        return next(filter(None, (about.reasons.get(f"{name}.{method}") for name in names)), about.why)

    def command(self, scale: str) -> str:
        return f"make suite SUITE={self.name} SCALE={scale}"


@dataclass(frozen=True)
class Row:
    """One experiment of a suite with one seed."""

    scale: str
    experiment: str
    seed: int

    def name(self, suite: Suite) -> str:
        return f"{suite.name}-{self.scale}-{self.experiment}-s{self.seed}"


def rows_of(suite: Suite, scale: str, only: Collection[str] = ()) -> list[Row]:
    """The runs of a scale in their order: stopped half way, every experiment has as many seeds, and its first values.

    Args:
        only: experiments, by the suite's name or by that of the runs (`badnets`, `badnets-0.1`); none: all.

    Raises:
        UserError: an experiment that the suite does not have.
    """
    names = {label: own for own, about in suite.experiments.items() for label in (about.name, own)}
    for given in only:
        if given not in names:
            raise UserError(f"EXPERIMENTS: {given!r} given, allowed: {', '.join(names)}")
    chosen = [own for own, about in suite.experiments.items() if not only or {own, about.name} & {*only}]
    experiments = sorted(chosen, key=lambda name: suite.experiments[name].place)
    return [Row(scale, name, seed) for seed in suite.scales[scale].seeds for name in experiments]
