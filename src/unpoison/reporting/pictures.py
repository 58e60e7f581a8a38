"""The report's sections of pictures, and the list of suspects as a table."""

from __future__ import annotations

import csv
from collections import Counter
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from ..core.arrays import Images, IntArray
from ..data.ranks import order
from ..data.ranks import ranks as rank_span
from . import figures, texts
from .answer import level_columns
from .escaping import spreadsheet, visible
from .metrics import best_first
from .page import Page
from .run import Run
from .suspicion import LEVELS

Floats = NDArray[np.floating[Any]]


def training_samples(page: Page, run: Run) -> None:
    """The same training images clean, as received and as variations."""
    page.heading(f"The same {'texts' if run.vocabulary else 'images'} through the pipeline", both=False)
    # Poisoned samples where they are known, else any.
    candidates = np.arange(len(run.data)) if run.poisoned is None else np.flatnonzero(run.poisoned)
    samples = _from_all_over(candidates, run.settings.samples)[: run.settings.samples]
    if run.vocabulary:
        texts.training_texts(page, run, samples)
        return
    received = run.data.gather(samples)
    rows = {"received": received}
    # The clean images are the base's, below the overlay; shown only where the truth is known.
    if run.truth is not None:
        clean = np.array(run.data.base[samples])
        rows = {"clean": clean, "received": received, "difference ×10": _difference(clean, received)}
    if run.variations is not None:
        # A sample's variations follow each other; the first one is shown.
        rows["variation"] = run.variations.gather(samples * (len(run.variations) // len(run.data)))
    titles = [f"{_short(run.sources[s])}\nlabel {_start(run.data.classes[run.data.labels[s]])}" for s in samples]
    page.figures([(figures.contact_sheet(rows, titles), "")], wide=True)


def triggered_samples(page: Page, run: Run) -> None:
    """Test images with each trigger, which may be stronger there than in training, or another one."""
    sheets = []
    if run.vocabulary and any(map(len, run.triggered.values())):
        page.heading("The trigger at the test", both=False)
    for name, triggered in run.triggered.items():
        if not len(triggered):
            continue
        rows = np.sort(_from_all_over(np.arange(len(triggered)), run.settings.samples)[: run.settings.samples])
        if run.vocabulary:
            texts.triggered_texts(page, run, name, triggered, rows)
            continue
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
    kinds = "" if run.poisoned is None else "Blue: clean samples, red: poisoned ones, each scaled to its tallest bar. "
    page.text(
        f"{kinds}The more suspicious, the farther right; the outermost bars hold all that lies beyond the outer hundredths.",
        both=False,
    )
    shown = []
    for name in run.detectors:
        scored = run.scores[name]
        poisoned = None if run.poisoned is None else run.poisoned[run.samples(scored)]
        picture = figures.histogram(scored.values.astype(float), poisoned)
        shown.append((picture, _with_figure(run, name, "AUROC {:.3f}", "auroc")))
    page.grid(shown)
    if run.roc is None:
        return
    # Fusion, which `evaluate` makes of the others' ranks, has no scores on disk but a curve.
    curves = {name: run.roc[name].to_numpy() for name in best_first(run.graded) if name in run.roc}
    if not curves:
        return
    page.text(
        "ROC: true over false positive rate, the latter on a log scale; beside each name the former at 1 %. Grey: the other "
        "detectors, dotted: chance.",
        both=False,
    )
    rates = run.roc["fpr"].to_numpy()
    page.grid(
        [(figures.roc(rates, curves, name), _with_figure(run, name, "{:.3f} at 1 %", "tpr_at_1fpr")) for name in curves]
    )


def _with_figure(run: Run, name: str, written: str, key: str) -> str:
    """A detector's name with one of its figures, where there is one."""
    return f"{name}: {written.format(run.graded[name][key])}" if name in run.graded else name


def masks(page: Page, run: Run) -> None:
    """Image, mask and pattern of the most and the least suspicious samples whose masks a detector kept."""
    for name in run.detectors:
        scored = run.scores[name]
        if not len(scored.aux.get("masks", ())):
            continue
        page.heading(f"Image, mask and pattern: {name}", both=False)
        words = "Image; mask, white where the image is kept; and the image through the mask, grey where it is not kept."
        page.text(f"{words} {scored.caption}", both=False)
        kept = dict(zip(scored.aux["index"].tolist(), scored.aux["masks"], strict=True))
        ranked = [sample for sample in order(scored.values, scored.index).tolist() if sample in kept]
        half = (len(ranked) + 1) // 2
        most, least = ranked[:half][: run.settings.samples], ranked[half:][-run.settings.samples :]
        for which, samples in (("most", most), ("least", least)):
            if samples:
                page.text(f"The {which} suspicious samples:", both=False)
                page.grid(
                    [(_masked(run, sample, kept[sample]), _named(run, sample)) for sample in samples], pixels=True
                )


def _masked(run: Run, sample: int, mask: Floats) -> bytes:
    """Image, mask (white: kept) and cognitive pattern x * m + (1 - m) * grey of a sample, beside each other."""
    image, weight = run.data.gather(np.array([sample]))[0], mask.astype(float)[..., None]
    # Grey is the mean of the random colours that such masks are made with.
    parts = (image, np.broadcast_to(255 * weight, image.shape), image * weight + (1 - weight) * 127.5)
    return figures.strip([np.rint(part).astype(np.uint8) for part in parts])


def _named(run: Run, sample: int) -> str:
    """A sample by the end of its file's name and the start of its class's, and whether it is poisoned, where that is known."""
    end = ", poisoned" if run.poisoned is not None and run.poisoned[sample] else ""
    return f"{_short(run.sources[sample])} label {_start(run.data.classes[run.data.labels[sample]])}{end}"


def patches(page: Page, run: Run) -> None:
    """The patches that an inspector found, those of the most suspicious classes first."""
    for verdict in run.verdicts.values():
        if not verdict.aux:
            continue
        page.text(verdict.caption, both=False)
        pictures = []
        for label in order(verdict.anomaly)[: run.settings.suspects].tolist():
            # Channels last for a picture; what the mask keeps out is black.
            patch = verdict.aux["patterns"][label] * verdict.aux["masks"][label].astype(np.float32)
            image = np.ascontiguousarray(patch.round().astype(np.uint8).transpose(1, 2, 0))
            caption = f"{run.class_name(label)}: {verdict.anomaly[label]:.1f}"
            pictures.append((figures.thumbnail(image), caption + (", flagged" if verdict.flagged[label] else "")))
        page.grid(pictures, pixels=True)


def suspects(page: Page, run: Run) -> None:
    """The most suspicious samples of each detector."""
    if not run.scores:
        return
    page.heading("Most suspicious samples", both=False)
    marked_how = "Marked" if run.vocabulary else "Marked in red"
    end = "" if run.poisoned is None else f" {marked_how}: samples that are poisoned."
    listed, all_ = len(_scored(run)), len(run.data)
    which = "all samples" if listed == all_ else f"all {listed:,} scored samples (of {all_:,})"
    page.text(f"By each detector, in order; {which} with their scores are in suspects.csv.{end}", both=False)
    for name in run.detectors:
        scored = run.scores[name]
        top = order(scored.values, scored.index)[: run.settings.suspects]
        page.text(f"{name}: {_labels(run, top)}.{_tied(scored.values, len(top))}", both=False)
        if run.vocabulary:
            texts.suspect_texts(page, run, top)
            continue
        shown = []
        for sample, image in zip(top, run.data.gather(top), strict=True):
            marked = run.poisoned is not None and bool(run.poisoned[sample])
            said = f"label {run.data.classes[run.data.labels[sample]]}{', poisoned' if marked else ''}"
            shown.append((figures.thumbnail(image), run.sources[sample], said, marked))
        page.gallery(shown)


def _labels(run: Run, samples: IntArray, most: int = 3) -> str:
    """The commonest labels of samples with their numbers: suspects of one label point to the attacker's."""
    counts = Counter(run.data.labels[samples].tolist()).most_common()
    named = [f"{count} of label {run.data.classes[label]}" for label, count in counts[:most]]
    rest = sum(count for _, count in counts[most:])
    return ", ".join([*named, *([f"{rest} of others"] if rest else [])])


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
    """Every scored sample with source, label, each detector's score and rank, level and reason, sorted by level and mean rank.

    The rank is 1 for the most suspicious; samples of equal score share the mean of the ranks they take together.
    """
    samples, names = _scored(run), np.array(list(map(spreadsheet, run.data.classes)), object)
    sources = [spreadsheet(run.sources[sample]) for sample in samples]
    table = pd.DataFrame({"sample": sources, "label": names[run.data.labels[samples]]}, index=samples)
    ranks = []
    for name in run.detectors:
        scored = run.scores[name]
        table[f"{name}_score"] = pd.Series(scored.values, run.samples(scored))
        table[f"{name}_rank"] = pd.Series(np.mean(rank_span(scored.values), axis=0), run.samples(scored))
        ranks.append(table[f"{name}_rank"])
    if not ranks:
        return table
    # Ranks, as scores of different detectors have no common scale.
    table["mean_rank"] = pd.concat(ranks, axis=1).mean(axis=1)
    table["level"], table["reason"] = level_columns(run, samples)
    listed = table.loc[order(-table["mean_rank"].to_numpy(), samples)]
    # Level by level, and in each by rank.
    return listed.sort_values("level", key=lambda levels: levels.map(LEVELS.index), ascending=False, kind="stable")


def _scored(run: Run) -> IntArray:
    """The samples that some detector scored, in rising order; all where there is no detector."""
    scored = [run.samples(scored) for scored in run.scores.values()]
    return np.unique(np.concatenate(scored)) if scored else np.arange(len(run.data))


def suspects_csv(run: Run) -> str:
    """The table for a spreadsheet or a program: text in quotes, numbers without, a line per sample."""
    table = suspects_table(run)
    for name in table.select_dtypes("floating"):
        # Six digits by hand: pandas makes text of numbers that it formats, and text stands in quotes.
        table[name] = pd.Series([_six_digits(value) for value in table[name].tolist()], table.index, dtype=object)
    # In quotes, a name cannot end its cell, whatever a spreadsheet takes for the separator.
    text: str = table.to_csv(index=False, quoting=csv.QUOTE_NONNUMERIC, lineterminator="\n")
    return text


def _six_digits(value: float) -> float | int:
    rounded = float(f"{value:.6g}")
    return int(rounded) if rounded.is_integer() else rounded


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


def drawings(page: Page, run: Run) -> None:
    """The figures of the models, as they were drawn: wide pictures each by itself, others side by side."""
    if not run.drawings:
        return
    page.heading("What the models do", both=False)
    for drawing in run.drawings.values():
        page.text(drawing.caption, both=False)
        if beside := [(one.png, one.caption) for one in drawing.pictures if not one.wide]:
            page.figures(beside)
        for one in drawing.pictures:
            if one.wide:
                page.figures([(one.png, one.caption)], wide=True)


ATTRIBUTES = 8  # in a sheet


def attributes(page: Page, run: Run) -> None:
    """The mean image of each attribute and the mean mask, black where the network needs nothing."""
    shown = [one for one in run.attributes if one.images]
    for start in range(0, len(shown), ATTRIBUTES):
        part = shown[start : start + ATTRIBUTES]
        rows = {
            "mean image": np.stack([one.mean for one in part]),
            "mean mask": np.stack([_scaled(one.mask) for one in part]),
        }
        titles = [f"{_start(one.name)}\npeak {one.mask.max():.2f}" for one in part]
        words = (
            "Mean image and mean mask of the images that have it; each mask is scaled to its own peak, which is white"
        )
        named = ", ".join(f"{visible(one.name)} at row {one.peak[0]}, column {one.peak[1]}" for one in part)
        page.figures([(figures.contact_sheet(rows, titles), f"{words}: {named}")], wide=True)


def _scaled(mask: Floats) -> Images:
    """A mask as grey, uint8 [h, w, 1], its largest value white."""
    largest = float(mask.max())
    return np.rint(255 * mask.astype(float) / (largest or 1))[..., None].astype(np.uint8)


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
