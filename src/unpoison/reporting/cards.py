"""Cards of a run's models and of its data set in the format of the Hugging Face hub: a block of YAML, then Markdown."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from huggingface_hub import DatasetCardData, EvalResult, ModelCardData

from .escaping import visible
from .page import Page, Table
from .problems import problems_table
from .run import Run
from .sections import data_of, graded_models, inline, network_of, privacy_of, recipe_of

IMAGES, TEXTS = "image-classification", "text-classification"
FIGURES = {"acc": "accuracy", "asr": "attack success rate", "ra": "robust accuracy"}
"""Figures of a model by their keys in the metrics."""
DATA = "data.md"
UNKNOWN = (
    "Whether the data carried a backdoor is not known, so no attack success rate could be measured. Accuracy says nothing of "
    "backdoors: a model with one is as accurate as one without."
)
KNOWN = (
    "The attack success rate is of this attack's triggers alone. That it is small does not show that there is no other trigger, "
    "nor that nobody could wake this one by tuning the model on a few poisoned images."
)
ELSEWHERE = "All figures are of the test split of the same source; images that were taken otherwise were not tested."


def cards(run: Run) -> dict[str, str]:
    """By file name a card for each graded model of a defence, and one for the training set as received."""
    graded = graded_models(run.metrics or {})
    found = {
        f"{name.replace(': ', '-')}.md": _model_card(run, name, about, graded[name])
        for name, about in run.defended.items()
        if name in graded
    }
    return {DATA: _data_card(run)} | found


def _model_card(run: Run, name: str, about: Mapping[str, Any], graded: Mapping[str, Any]) -> str:
    figures = {key: float(graded[key]) for key in FIGURES if graded.get(key) is not None}
    page = Page(f"unpoison, {name}")
    page.text(_origin(run, name))
    page.heading("What it is")
    made_by = about["made_by"]
    rows = [
        # With a warning where nothing vouches for the reserve.
        ("data", data_of(run)),
        ("network", network_of(about["network"])),
        ("classes", _classes(run)),
        _input(run),
        ("parameters of the method", inline(made_by.get("parameters", {})) or "none"),
        *([("recipe", recipe_of(made_by))] if "recipe" in made_by else []),
        *([("privacy", privacy_of(made_by))] if "privacy" in made_by else []),
        ("seed", str(made_by.get("seed", "not recorded"))),
        ("machine", str(made_by.get("machine", "not recorded"))),
        *((f"SHA-256 of {file}", digest) for file, digest in about["files"].items()),
        *((f"made from: {what}", digest) for what, digest in about["made_from"].items()),
    ]
    page.table(Table(("", ""), rows, frozenset({1})))
    page.heading("Figures")
    page.table(
        Table(
            ("", "figure", "test images"), [[FIGURES[key], f"{figures[key]:.3f}", _tested(run, key)] for key in figures]
        )
    )
    page.heading("What was not tested")
    page.text(UNKNOWN if run.truth is None else KNOWN)
    page.text(ELSEWHERE)
    where = {key: visible(str(run.about.get(key) or "unknown")) for key in ("name", "source")}
    results = [
        EvalResult(
            task_type=_task(run),
            dataset_type=where["name"],
            dataset_name=where["source"],
            dataset_split="test",
            metric_type=FIGURES[key].replace(" ", "_"),
            metric_value=value,
        )
        for key, value in figures.items()
    ]
    return _card(
        ModelCardData(model_name=f"unpoison, {name}", library_name="unpoison", tags=_tags(run), eval_results=results),
        page,
    )


def _origin(run: Run, name: str) -> str:
    """How a model came about, in a sentence."""
    family, _, method = name.partition(": ")
    reserve = run.about["counts"].get("reserve", 0)
    if family == "purified":
        text = f"The model of the suspect set, purified by {method} with the {reserve:,} images of the reserve."
    elif family == "robust":
        text = f"Trained on the suspect set by {method}, which is made to leave a backdoor out."
    else:
        teacher = "of another teacher" if run.teacher else "of the suspect set's model"
        text = f"A student {teacher}, trained on variations of the suspect images by a diffusion model."
    if run.truth is None:
        return text
    return f"{text} The set was poisoned for a test of defences, by {run.truth.attack}: this is a model for research."


def _tested(run: Run, key: str) -> str:
    """The number of test images that a figure is of."""
    attack = (run.metrics or {}).get("attack", {})
    return f"{run.about['counts'].get('test', 0):,}" if key == "acc" else f"{attack['tested']:,.0f}"


def _data_card(run: Run) -> str:
    page = Page("A training set as it was received")
    page.text(
        "Nothing was taken out: suspicious samples stand in suspects.csv, what is wrong otherwise in problems.csv."
    )
    page.heading("What it is")
    rows = [
        ("data", data_of(run)),
        ("classes", _classes(run)),
        ("licence", str(run.about.get("licence") or "not known")),
    ]
    page.table(Table(("", ""), rows, frozenset({1})))
    page.heading("What was found")
    if run.poisoned is not None:
        page.text(
            f"{int(run.poisoned.sum()):,} of {len(run.data):,} samples were poisoned here, for a test of defences."
        )
    flagged = {f"flagged by {method}": scored.flagged for method, scored in run.scores.items()}
    found: list[Sequence[str]] = [[what, f"{int(mask.sum()):,}"] for what, mask in flagged.items() if mask is not None]
    found += [[str(kind), f"{len(rows):,}"] for kind, rows in problems_table(run).groupby("problem", sort=False)]
    if found:
        page.table(Table(("", "number"), found))
    else:
        page.text("Nothing, or nothing has looked: see the report.")
    name = visible(str(run.about.get("name") or "unknown"))
    return _card(DatasetCardData(pretty_name=name, task_categories=[_task(run)], tags=_tags(run)), page)


def _task(run: Run) -> str:
    return TEXTS if run.vocabulary else IMAGES


def _tags(run: Run) -> list[str]:
    return ["backdoor-defence", _task(run), "unpoison"]


def _input(run: Run) -> tuple[str, str]:
    """What the samples are, and how a network takes them."""
    shape = "x".join(map(str, run.data.base.shape[1:]))
    if run.vocabulary:
        words = f"token ids of the data's own vocabulary of {len(run.vocabulary):,}, the two bytes of each in {shape}"
        return "texts", f"{words}, as float32 [n, 2, 1, length] of bytes / 255"
    return "images", f"{shape}, as float32 [n, channels, height, width] in [0, 1]; normalised within"


def _classes(run: Run) -> str:
    return ", ".join(map(run.class_name, range(len(run.data.classes))))


def _card(front: ModelCardData | DatasetCardData, page: Page) -> str:
    return f"---\n{front.to_yaml()}\n---\n{page.markdown()}"
