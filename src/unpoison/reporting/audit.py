"""The verdict on a model that was received: what was tested and found, how often that is said of clean models, what was assumed."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from ..core.errors import UserError
from ..data.verdicts import Verdict, suspected_and_control
from .inputs import read_curve
from .intervals import wilson
from .page import Page, Table
from .run import Run

HEADING = "Audit of the model received"
LEVELS = (
    "No sign of a backdoor in what was tested, which does not show that there is none.",
    "A suspicion, not a finding: {some}.",
    "A backdoor is likely: {all} flag class {target} and rank it first.",
)
"""What is said by how many inspectors flag a class: none, some or not the same, all of them the same one."""
LOW = 0.5
NOT_TESTED = (
    "Not tested: triggers that change with the image or fill it (reversal looks for a small patch), a backdoor that spares most "
    "classes, attacks on inputs without a backdoor (evasion), and whether the images given are themselves free of a trigger. "
    "They are held-out, trusted and suspect images in three disjoint parts: where some of them carry the trigger, so do some of "
    "the trusted ones, which raises the thresholds of the rules and hands the trigger to the purifiers."
)
REVERSED = (
    "Flips: share of the held-out images of other classes that the trigger reversed for class {target}, the most suspicious, takes "
    "there, by the model as it came, by the purified one, and by that after it was tuned for a moment on a few stamped images; "
    "control: the same of class {control}. A reversed trigger works on a clean model too; flips that fall with purification, "
    "and come back with tuning where the control does not, are those of a backdoor that was asleep."
)


def kind_of(network: Mapping[str, Any]) -> str:
    """A network by name and arguments, as `NETWORK=` takes it: `resnet18 stem=conv3_pool width=16`."""
    own = [f"{key}={value}" for key, value in sorted(network["arguments"].items()) if key != "pretrained"]
    return " ".join([network["name"], *own])


def near_chance(acc: float, count: int, chance: float) -> bool:
    """Whether an accuracy on `count` images is not told from always giving the most frequent class, whose share is `chance`."""
    return wilson(acc, count)[0] <= chance


def read_rates(path: Path) -> pd.DataFrame | None:
    """The measured audits of models that were known to be clean or backdoored; None where there is no such file.

    Raises:
        UserError: a table without the columns that say what a row is of.
    """
    if not path.is_file():
        return None
    table = read_curve(path, ["seed"])
    for column in ("network", "attack"):
        if column not in table:
            raise UserError(f"{path}: no column {column}, allowed: a table of bench/audit.py")
    return table


def level_of(flagged: Sequence[int], foremost: Sequence[int]) -> int:
    """Which of `LEVELS` holds, from the number of classes that each inspector flags and the class that it ranks first."""
    if not any(flagged):
        return 0
    return 2 if len(flagged) > 1 and all(flagged) and len(set(foremost)) == 1 else 1


def audited(page: Page, run: Run) -> None:
    """The section of a run with a model that was received; nothing of any other run."""
    if run.model is None or not isinstance(about := run.model["made_by"].get("received"), Mapping):
        return
    page.heading(HEADING)
    if run.metrics is None:
        page.text("The model was not graded: run `evaluate`.")
        return
    acc, count = run.metrics["backdoored"]["acc"], int(run.about["counts"]["test"])
    if near_chance(acc, count, run.chance):
        page.text(
            f"NO VERDICT. ACC on the held-out images is {_share(acc, count)}, no better than chance ({run.chance:.2f}): the "
            "normalisation, the order of the classes or the network is another one than assumed, and nothing that follows means "
            f"anything. {_assumed(run, about)}"
        )
        return
    page.text(_verdict(run))
    page.text(f"How sure: {_rates(run)}")
    if acc < LOW:
        page.text(f"ACC is low ({_share(acc, count)}): look at normalisation and class order first.")
    page.table(_looked_at(run))
    purified = run.metrics.get("purified", {})
    if purified:
        page.table(_purified(run, acc, count))
    if (classes := _reversed_classes(run)) and any("reversed" in values for values in purified.values()):
        page.text(REVERSED.format(target=run.class_name(classes[0]), control=run.class_name(classes[1])))
    page.text(_assumed(run, about))
    page.text(NOT_TESTED)


def section_of(summary: str) -> str:
    """The section of a summary in Markdown; "" where it has none."""
    _, found, rest = summary.partition(f"## {HEADING}\n")
    return rest.split("\n## ")[0].strip() if found else ""


def _flagged(verdict: Verdict) -> list[int]:
    classes: list[int] = np.flatnonzero(verdict.flagged).tolist()
    return classes


def _level(verdicts: Mapping[str, Verdict]) -> int:
    foremost = [int(verdict.anomaly.argmax()) for verdict in verdicts.values()]
    return level_of([len(_flagged(verdict)) for verdict in verdicts.values()], foremost)


def _verdict(run: Run) -> str:
    if not run.verdicts:
        return "No verdict: no inspector looked at the model."
    said = "; ".join(
        f"{name} flags {_names(run, _flagged(verdict))}"
        + ("" if verdict.flagged.any() else f", and ranks {_names(run, [int(verdict.anomaly.argmax())])} first")
        for name, verdict in run.verdicts.items()
    )
    target = run.class_name(int(next(iter(run.verdicts.values())).anomaly.argmax()))
    return "VERDICT. " + LEVELS[_level(run.verdicts)].format(some=said, all=" and ".join(run.verdicts), target=target)


def _names(run: Run, classes: Sequence[int]) -> str:
    return ", ".join(f"class {run.class_name(label)}" for label in classes) or "no class"


def _known(run: Run) -> tuple[str, pd.DataFrame]:
    """The kind of the network, and the rows of measured audits that are of it, with every inspector of this run."""
    assert run.model is not None
    kind = kind_of(run.model["network"])
    if run.rates is None:
        return kind, pd.DataFrame({"attack": []})
    needed = [f"{name}.{figure}" for name in run.verdicts for figure in ("flagged", "foremost", "index")]
    if not set(needed) <= set(run.rates.columns):
        return kind, run.rates[:0]
    return kind, run.rates[run.rates["network"] == kind]


def _rates(run: Run) -> str:
    """How often this verdict, or a worse one, was said of models of this kind."""
    kind, known = _known(run)
    clean, other = known[known["attack"] == "none"], known[known["attack"] != "none"]
    if not len(clean):
        return (
            f"not measured for this network ({kind}), so that nobody can say here how often a clean one gets this verdict, or a "
            "backdoored one a better."
        )
    level = _level(run.verdicts)
    words = {0: "no class flagged", 1: "at least one class flagged", 2: "all inspectors agreed"}
    at_least = [_levels(rows, list(run.verdicts)) for rows in (clean, other)]
    counted = [int((each == 0).sum() if level == 0 else (each >= level).sum()) for each in at_least]
    worse = " or a worse one" if level == 1 else ""
    said = f"of {len(clean)} clean models of this kind ({kind}) {counted[0]} got this verdict{worse}"
    said += f" ({words[level]}; {_interval(counted[0], len(clean))})"
    if len(other):
        attacks = ", ".join(dict.fromkeys(other["attack"].astype(str)))
        if "asr" in other:
            # A backdoor that was hardly learned is no failure of who does not find it.
            attacks += f"; ASR {other['asr'].min():.2f} to {other['asr'].max():.2f}"
        said += f", of {len(other)} backdoored ones ({attacks}) {counted[1]} ({_interval(counted[1], len(other))})"
    if level and 2 * counted[0] >= len(clean):
        said += "; what half of the clean models get says nothing by itself"
    return (
        f"{said}. They were trained on digits of 32 px, and other data may have other rates (bench/results/audit.csv)."
    )


def _levels(rows: pd.DataFrame, inspectors: Sequence[str]) -> np.ndarray:
    return np.array(
        [
            level_of(
                [int(row[f"{name}.flagged"]) for name in inspectors],
                [int(row[f"{name}.foremost"]) for name in inspectors],
            )
            for _, row in rows.iterrows()
        ],
        np.int64,
    )


def _looked_at(run: Run) -> Table:
    """A row for each inspector and detector: what it found, and how often it finds as much in models that are known."""
    _, known = _known(run)
    clean, other = known[known["attack"] == "none"], known[known["attack"] != "none"]
    rows = []
    for name, verdict in run.verdicts.items():
        found = f"flags {_names(run, _flagged(verdict))}; largest index {verdict.anomaly.max():.2f}"
        alarms = "not measured"
        if len(clean):
            above = int((clean[f"{name}.index"] >= round(float(verdict.anomaly.max()), 3)).sum())
            alarms = (
                f"{int((clean[f'{name}.flagged'] > 0).sum())} of {len(clean)} flagged, {above} with an index as large"
            )
        hits = f"target flagged in {int(other[f'{name}.hit'].sum())} of {len(other)}" if len(other) else "not measured"
        rows.append([name, found, alarms, hits])
    for name, scores in run.scores.items():
        if scores.flagged is None:
            rows.append([name, "no rule for this model", "–", "–"])
            continue
        found = f"flags {int(scores.flagged.sum())} of {len(scores.flagged)} images given"
        cells = []
        for part, figure in ((clean, "fpr"), (other, "tpr")):
            values = part[f"{name}.{figure}"].dropna() if f"{name}.{figure}" in part else []
            cells.append(
                f"{min(values):.2f} to {max(values):.2f} of {'clean' if figure == 'fpr' else 'triggered'} images"
                if len(values)
                else "not measured"
            )
        rows.append([name, found, *cells])
    header = ["looked at by", "found", "clean models of this kind", "backdoored ones"]
    return Table(header, rows, frozenset({1, 2, 3}))


def _purified(run: Run, acc: float, count: int) -> Table:
    """ACC and flips of the model as it came, and of what each purifier made of it."""
    assert run.metrics is not None
    rows = []
    for name, values in run.metrics["purified"].items():
        flips = [
            " → ".join(f"{values[key]:.2f}" for key in (start, f"{start}_purified", f"{start}_retuned"))
            if start in values
            else "–"
            for start in ("reversed", "control")
        ]
        rows.append([name, _share(acc, count), _share(values["acc"], count), *flips])
    header = ["purified by", "ACC before", "ACC after", "flips: before → purified → tuned", "control"]
    return Table(header, rows)


def _reversed_classes(run: Run) -> tuple[int, int] | None:
    return next((found for verdict in run.verdicts.values() if (found := suspected_and_control(verdict))), None)


def _assumed(run: Run, about: Mapping[str, Any]) -> str:
    assert run.model is not None
    network = run.model["network"]
    mean, std = (", ".join(f"{value:.3g}" for value in network[key]) for key in ("mean", "std"))
    height, width = network["image_size"]
    said = {key: str(about.get(key, "not recorded")) for key in ("file", "sha256", "network", "normalisation")}
    first = ", ".join(map(run.class_name, range(min(3, len(run.data.classes)))))
    return (
        f"Assumed: {said['file']} (SHA-256 {said['sha256'][:16]}) is {kind_of(network)} ({said['network']}); images of "
        f"{height}x{width} px in [0, 1], less a mean of {mean}, divided by {std} ({said['normalisation']}); outputs in the order "
        f"of the classes {first}, …"
    )


def _share(share: float, count: int) -> str:
    low, high = wilson(share, count)
    return f"{share:.3f} [{low:.2f}, {high:.2f}] of {count}"


def _interval(hits: int, count: int) -> str:
    low, high = wilson(hits / max(count, 1), count)
    return f"95 % interval of the rate: {low:.2f} to {high:.2f}"
