"""The answer, in front of all evidence: whether something is wrong, how sure that is, what to do next."""

from __future__ import annotations

import numpy as np

from ..core.arrays import IntArray
from .escaping import spreadsheet
from .intervals import EXPLAINED, share_of
from .page import Page, Table
from .run import Run
from .suspicion import (
    FAR,
    HIGH,
    LEARNED,
    LEVELS,
    LOW,
    MEDIUM,
    NO_ANSWER,
    Suspicion,
    at_least,
    first_of,
    other_alarms,
    reasons,
    takes_along,
)

MOST_GROUPS = 3
"""Groups named in the answer at most."""
ELSEWHERE = "; seen by the network that was trained with canaries, and not by the other"
FEW = 5
"""Samples below which the answer does not say where the first of the list are."""


def answer(page: Page, run: Run) -> None:
    """The answer of a scan, a table of the levels, and what canaries say of them; nothing of a run that is no scan."""
    if run.suspicion is None or not run.is_scan:
        return
    page.heading("Answer")
    page.text(" ".join(paragraph(run, run.suspicion)))
    page.table(_levels(run, run.suspicion))
    if not run.calibration:
        page.text("A level counts what is above it as well; low is the first hundredth of any list.")
        return
    page.text(
        f"{EXPLAINED} Expected false alarms: samples without a canary that the same levels name in the set with canaries, in a "
        "group of canaries or as the first of its list, and not in the set as received, per round. A level counts what is above it "
        "as well; low is the first hundredth of any list."
    )
    page.heading("What would have been found")
    page.table(_canaries(run))
    page.text(
        f"Canaries: known triggers on a few of the very same images, in a copy of the set on which the network was trained anew; "
        f"rounds: {len(run.calibration)}. First by a detector: so many of them are among as many of its first samples. What stays "
        "below a level here would have stayed below it in the set: such an attack may be there, unseen."
    )


def paragraph(run: Run, found: Suspicion) -> list[str]:
    """Whether something is wrong, how sure that is, and what to do next: a few sentences each in a line of its own."""
    learned, groups = run.learned, _groups(run, found)
    if learned is not None and learned < LEARNED:
        return [
            f"{NO_ANSWER}: the model has learned only {learned:.0%} of the labels, and what it has not learned no detector sees. "
            "Next: train longer (train.epochs); until then the levels mean nothing."
        ]
    surely = [group for group in groups if found.level[group[1]].max() == HIGH]
    others = [group for group in groups if found.level[group[1]].max() < HIGH]
    lines = []
    if surely:
        lines.append(
            f"Something is wrong: {_named(run, found, surely)}. No group of honest images that was looked at came to {FAR:g} or "
            "took its class along so."
        )
    else:
        classes = len(np.unique(run.data.labels))
        lines.append(
            f"Nothing was found: in none of the {classes} classes does a group stand {FAR:g} standard deviations apart from the "
            "rest, or take its class along to other images."
        )
    if others:
        lines.append(f"Worth a look: {_named(run, found, others)}. Groups of honest images come to that now and then.")
    if not surely:
        lines += _foremost(run, found)
    lines.append(_how_sure(run))
    if surely:
        lines.append(
            "Next: look at the first rows of suspects.csv. If they are what they seem, `make export DATA=… TO=clean` writes the "
            "set without them; train on that. If they are right, keep them: a group may be a rare but honest kind of image."
        )
    else:
        lines.append("Next: nothing has to be removed. The problems of the data below, if any, are no backdoor.")
    return lines


def _named(run: Run, found: Suspicion, groups: list[tuple[int, IntArray]]) -> str:
    """Groups in words, the farthest ones by name."""
    named = "; ".join(
        f"{len(members):,} of {int((run.data.labels == label).sum()):,} samples of class {run.class_name(label)} stand at "
        f"least {at_least(float(found.apart[members].max()))} standard deviations apart from the others "
        f"({_levels_of(found, members)}{ELSEWHERE if found.look[members].all() else ''})"
        + (f", and a part of them {takes_along(float(brought))}" if (brought := found.brought[members].max()) else "")
        for label, members in groups[:MOST_GROUPS]
    )
    return named + (f"; and groups in {len(groups) - MOST_GROUPS} more classes" if len(groups) > MOST_GROUPS else "")


def _levels_of(found: Suspicion, members: IntArray) -> str:
    """The level of a group's samples, or how many there are of each: two networks may say different ones of a class."""
    counts = {LEVELS[level]: int((found.level[members] == level).sum()) for level in (HIGH, MEDIUM)}
    there = {level: count for level, count in counts.items() if count}
    return next(iter(there)) if len(there) == 1 else ", ".join(f"{count:,} {level}" for level, count in there.items())


def _foremost(run: Run, found: Suspicion) -> list[str]:
    """Where the first of the list are: a sentence where most of them are of one class, as planted ones are and others may be."""
    first = np.flatnonzero((found.place > 0) & (found.place <= first_of(int((found.place > 0).sum()))))
    sizes = np.bincount(run.data.labels[first], minlength=len(run.data.classes))
    label = int(sizes.argmax())
    if len(first) < FEW or sizes[label] <= len(first) / 2:
        return []
    return [
        f"Of the first {len(first):,} of the list {sizes[label]:,} are of class {run.class_name(label)}, which has "
        f"{(run.data.labels == label).mean():.0%} of the samples: no sign by itself, and worth a look."
    ]


def _how_sure(run: Run) -> str:
    kinds = [kind for planted in run.calibration for kind in planted.kinds]
    if not kinds:
        return "How sure: unknown, as no canaries were planted, and so nothing says what this scan would have found."
    total, reached = sum(kind.count for kind in kinds), sum(int(kind.found[HIGH]) for kind in kinds)
    blind = sorted({kind.kind for kind in kinds if kind.found[HIGH] < kind.count / 2})
    return (
        f"How sure: of {total:,} canaries this scan would have found {reached:,} ({reached / max(total, 1):.0%})"
        + (f"; it is blind to most of those by {', '.join(blind)}" if blind else "")
        + "."
    )


def answer_text(run: Run) -> str:
    """The answer for a terminal: the paragraph and a line per level; empty for a run that is no scan."""
    if run.suspicion is None or not run.is_scan:
        return ""
    lines = paragraph(run, run.suspicion)
    for level, number, *calibrated in _level_rows(run, run.suspicion):
        line = f"{level}: {number} samples"
        if calibrated:
            expected, share = calibrated
            line += f"; expected false alarms {expected}; of the canaries it would have named {share}"
        lines.append(line)
    return "".join(f"{' '.join(line.split())}\n" for line in lines)


def kept_and_removed(run: Run) -> tuple[str, str]:
    """Names of the training samples below the chosen level, and of those from it on, a line each, in the order of the set."""
    removed = np.zeros(len(run.data), bool)
    if run.suspicion is not None:
        removed = run.suspicion.level >= LEVELS.index(run.settings.level)
    return _names(run, np.flatnonzero(~removed)), _names(run, np.flatnonzero(removed))


def level_columns(run: Run, samples: IntArray) -> tuple[list[str], list[str]]:
    """Level and reason of samples, for the list of suspects."""
    if run.suspicion is None:
        return [""] * len(samples), [""] * len(samples)
    every = reasons(run.suspicion, run.grounds, run.data.labels, run.data.classes)
    return [LEVELS[run.suspicion.level[sample]] for sample in samples], [
        spreadsheet(every[sample]) for sample in samples
    ]


def _names(run: Run, samples: IntArray) -> str:
    return "".join(f"{run.sources[sample]}\n" for sample in samples.tolist())


def _groups(run: Run, found: Suspicion) -> list[tuple[int, IntArray]]:
    """Classes with samples of level medium or high, and these samples, the farthest group first."""
    suspects = np.flatnonzero(found.level >= MEDIUM)
    labels = np.unique(run.data.labels[suspects])
    groups = [(int(label), suspects[run.data.labels[suspects] == label]) for label in labels]
    return sorted(groups, key=lambda group: -float(found.apart[group[1]].max()))


def _level_rows(run: Run, found: Suspicion) -> list[list[str]]:
    """Level, number of samples, and with canaries expected false alarms and their share: a row per level, the highest first."""
    alarms = [other_alarms(planted, found) for planted in run.calibration]
    kinds = [kind for planted in run.calibration for kind in planted.kinds]
    total = max(1, sum(kind.count for kind in kinds))
    rows = []
    for level in (HIGH, MEDIUM, LOW):
        row = [LEVELS[level], f"{int((found.level >= level).sum()):,}"]
        if alarms:
            expected = float(np.mean([numbers[level] for numbers, _ in alarms]))
            among = round(float(np.mean([ordinary for _, ordinary in alarms])))
            reached = sum(int(kind.found[level]) for kind in kinds)
            row += [f"{expected:g} of {among:,}", f"{reached:,} of {total:,}, {share_of(reached / total, total)}"]
        rows.append(row)
    return rows


def _levels(run: Run, found: Suspicion) -> Table:
    header = ["level", "samples", "expected false alarms", "canaries it would have named"]
    return Table(header if run.calibration else header[:2], _level_rows(run, found))


def _canaries(run: Run) -> Table:
    """A row per kind of canary and round: how many of them reach each level, and how many each detector has in front."""
    detectors = list(dict.fromkeys(name for planted in run.calibration for name in planted.scores))
    header = ["canaries", "to class", "number", *LEVELS[:0:-1], *(f"first by {name}" for name in detectors)]
    rows = [
        [
            kind.kind,
            run.class_name(kind.target),
            f"{kind.count:,}",
            *(f"{int(kind.found[level]):,}" for level in (HIGH, MEDIUM, LOW)),
            *(f"{kind.first.get(name, 0):,}" for name in detectors),
        ]
        for planted in run.calibration
        for kind in planted.kinds
    ]
    return Table(header, rows)
