"""The report's sections of pictures, and the list of suspects as a table."""

from __future__ import annotations

import csv
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..core.arrays import Images, IntArray
from ..data.ranks import order
from ..data.ranks import ranks as rank_span
from . import figures
from .escaping import spreadsheet, visible
from .page import Page
from .run import Run

Floats = NDArray[np.floating[Any]]


def training_samples(page: Page, run: Run) -> None:
    """The same training images clean, as received, as variations, and as a detector's masks show them."""
    page.heading("The same images through the pipeline", both=False)
    masked = {name: scored for name, scored in run.scores.items() if "masks" in scored.aux}
    # Poisoned samples where they are known, else any.
    candidates = np.arange(len(run.data)) if run.poisoned is None else np.flatnonzero(run.poisoned)
    candidates = _from_all_over(candidates, run.settings.samples)
    for scored in masked.values():
        # Samples whose mask was kept come first, the most suspicious ones in front.
        kept = scored.aux["index"]
        candidates = np.concatenate([kept[np.isin(kept, candidates)], candidates[~np.isin(candidates, kept)]])
    samples = candidates[: run.settings.samples]
    received = run.data.gather(samples)
    rows = {"received": received}
    # The clean images are the base's, below the overlay; shown only where the truth is known.
    if run.truth is not None:
        clean = np.array(run.data.base[samples])
        rows = {"clean": clean, "received": received, "difference ×10": _difference(clean, received)}
    if run.variations is not None:
        # A sample's variations follow each other; the first one is shown.
        rows["variation"] = run.variations.gather(samples * (len(run.variations) // len(run.data)))
    for name, scored in masked.items():
        # Grey where no mask was kept for a sample.
        place = {int(sample): row for row, sample in enumerate(scored.aux["index"])}
        blank, drawn = np.full((*run.data.image_size, 3), 235, np.uint8), figures.heat(scored.aux["masks"])
        rows[f"{name}: mask"] = np.stack([drawn[place[int(s)]] if int(s) in place else blank for s in samples])
    titles = [f"{_short(run.sources[s])}\nlabel {_start(run.data.classes[run.data.labels[s]])}" for s in samples]
    caption = " ".join(scored.caption for scored in masked.values())
    page.figures([(figures.contact_sheet(rows, titles), caption)], wide=True)


def triggered_samples(page: Page, run: Run) -> None:
    """Test images with each trigger, which may be stronger there than in training, or another one."""
    sheets = []
    for name, triggered in run.triggered.items():
        if not len(triggered):
            continue
        rows = np.sort(_from_all_over(np.arange(len(triggered)), run.settings.samples)[: run.settings.samples])
        clean, stamped = triggered.test.gather(triggered.overlay.index[rows]), triggered.overlay.images[rows]
        sheet = {"clean": clean, "with the trigger": stamped, "difference ×10": _difference(clean, stamped)}
        wanted = triggered.overlay.labels[rows]
        titles = [f"wanted {_start(run.data.classes[label])}" for label in wanted]
        sheets.append((figures.contact_sheet(sheet, titles), f"{name}: test images that ASR counts"))
    if sheets:
        page.heading("The trigger at the test", both=False)
    # A figure of its own for each trigger: side by side they would shrink.
    for sheet_and_caption in sheets:
        page.figures([sheet_and_caption], wide=True)


def scores(page: Page, run: Run) -> None:
    """Histograms of every detector's scores, and their ROC curves where the truth is known."""
    if not run.scores:
        return
    page.heading("Scores", both=False)
    shown = []
    for name, scored in run.scores.items():
        poisoned = None if run.poisoned is None else run.poisoned[run.samples(scored)]
        shown.append((figures.histogram(scored.values.astype(float), poisoned, name), f"Scores of {name}"))
    if run.roc is not None:
        curves = {name: run.roc[name].to_numpy() for name in run.scores if name in run.roc}
        if curves:
            picture = figures.roc(run.roc["fpr"].to_numpy(), curves)
            shown.append((picture, "ROC, false positive rate on a log scale"))
    page.figures(shown)


def suspects(page: Page, run: Run) -> None:
    """The most suspicious samples of each detector."""
    if not run.scores:
        return
    page.heading("Most suspicious samples", both=False)
    end = "" if run.poisoned is None else " Marked in red: samples that are poisoned."
    listed, all_ = len(_scored(run)), len(run.data)
    which = "all samples" if listed == all_ else f"all {listed:,} scored samples (of {all_:,})"
    page.text(f"By each detector, in order; {which} with their scores are in suspects.csv.{end}", both=False)
    for name, scored in run.scores.items():
        top = order(scored.values, scored.index)[: run.settings.suspects]
        thumbnails = []
        for sample, image in zip(top, run.data.gather(top), strict=True):
            caption = f"{run.sources[sample]} label {run.data.classes[run.data.labels[sample]]}"
            marked = run.poisoned is not None and bool(run.poisoned[sample])
            thumbnails.append((figures.thumbnail(image), caption, marked))
        page.text(f"{name}:{_tied(scored.values, len(top))}", both=False)
        page.thumbnails(thumbnails)


def _tied(values: Floats, shown: int) -> str:
    """What there is to say where the last sample shown has the score of others that are not shown."""
    if shown in (0, len(values)):
        return ""
    cut = np.partition(values, len(values) - shown)[len(values) - shown]
    same, above = int((values == cut).sum()), int((values > cut).sum())
    if above + same == shown:
        return ""
    return f" {same} samples share the score at the cut; which {shown - above} of them are shown means nothing."


def suspects_table(run: Run) -> pd.DataFrame:
    """Every scored sample with source, label, and each detector's score and rank, sorted by mean rank.

    The rank is 1 for the most suspicious; samples of equal score share the mean of the ranks they take together.
    """
    samples, names = _scored(run), np.array(list(map(spreadsheet, run.data.classes)), object)
    sources = [spreadsheet(run.sources[sample]) for sample in samples]
    table = pd.DataFrame({"sample": sources, "label": names[run.data.labels[samples]]}, index=samples)
    ranks = []
    for name, scored in run.scores.items():
        table[f"{name}_score"] = pd.Series(scored.values, run.samples(scored))
        table[f"{name}_rank"] = pd.Series(np.mean(rank_span(scored.values), axis=0), run.samples(scored))
        ranks.append(table[f"{name}_rank"])
    if not ranks:
        return table
    # Ranks, as scores of different detectors have no common scale.
    table["mean_rank"] = pd.concat(ranks, axis=1).mean(axis=1)
    return table.loc[order(-table["mean_rank"].to_numpy(), samples)]


def _scored(run: Run) -> IntArray:
    """The samples that some detector scored, in rising order; all where there is no detector."""
    scored = [run.samples(scored) for scored in run.scores.values()]
    return np.unique(np.concatenate(scored)) if scored else np.arange(len(run.data))


def suspects_csv(run: Run) -> str:
    """The table for a spreadsheet or a program: text in quotes, numbers without, a line per sample."""
    # In quotes, a name cannot end its cell, whatever a spreadsheet takes for the separator.
    text: str = suspects_table(run).to_csv(
        index=False, float_format="%.6g", quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n"
    )
    return text


def training(page: Page, run: Run) -> None:
    """Accuracy of every trained model over its epochs, and the backdoored model's loss on clean and poisoned samples."""
    curves = {name: table for name, table in run.curves.items() if len(table)}
    if not curves:
        return
    page.heading("Training", both=False)
    accuracy = {name: (table["epoch"].to_numpy(), table["accuracy"].to_numpy()) for name, table in curves.items()}
    shown = [(figures.training_curves(accuracy, "accuracy"), "Accuracy on the labels trained with")]
    if run.losses is not None:
        kinds = {"all samples": _mean_losses(run.losses)}
        if run.poisoned is not None:
            split = {"clean": ~run.poisoned, "poisoned": run.poisoned}
            kinds = {name: _mean_losses(run.losses[:, mask]) for name, mask in split.items()}
        loss = figures.training_curves(kinds, "loss", log=True)
        shown.append((loss, "Loss of the backdoored model: poison is learned early"))
    page.figures(shown)


def _mean_losses(losses: Floats) -> tuple[IntArray, Floats]:
    """Epochs, from 1, and mean loss in each, without epochs that saw none of these samples."""
    # NaN where a sample was left out of an epoch.
    seen = np.flatnonzero(~np.isnan(losses).all(1))
    return seen + 1, np.nanmean(losses[seen], 1)


def _from_all_over(candidates: IntArray, count: int) -> IntArray:
    """The candidates, `count` of them from all over first: in a folder's order, neighbours are of one class."""
    places = np.unique(np.linspace(0, max(0, len(candidates) - 1), min(count, len(candidates))).astype(np.int64))
    return np.concatenate([candidates[places], np.delete(candidates, places)])


def _difference(clean: Images, stamped: Images) -> Images:
    """Absolute difference, ten times enlarged."""
    return (np.abs(stamped.astype(int) - clean) * 10).clip(0, 255).astype(np.uint8)


def _short(name: str) -> str:
    """A file's name for a column of a sheet, only its end where it is long. The list of suspects has the full name."""
    name = visible(name.rsplit("/", 1)[-1])
    return name if len(name) <= 11 else "…" + name[-10:]


def _start(name: str) -> str:
    """The start of a class's name for a column of a sheet."""
    return visible(name)[:9]
