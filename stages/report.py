"""Write the report: `reports/index.html` (one file), `reports/summary.md`, `reports/suspects.csv`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from common import (
    BACKDOORED,
    BASE,
    CURVES,
    METRICS,
    POISONED,
    SCORES,
    TRAINING,
    TRUTH,
    VARIATIONS,
    Params,
    checked,
    load_params,
    read_costs,
    run_stage,
    section,
)
from unpoison.core.files import load_array, new_file, read_json
from unpoison.core.hyperparameters import Count
from unpoison.data.imageset import ImageSet
from unpoison.data.scores import Scores, load_scores
from unpoison.data.store import open_poisoned, open_split, read_about, read_sources
from unpoison.poisoning.trigger import Images, IntArray, stamp
from unpoison.poisoning.truth import Truth, read_truth
from unpoison.reporting import figures
from unpoison.reporting.page import Page, Table

INDEX, SUMMARY, SUSPECTS = Path("reports/index.html"), Path("reports/summary.md"), Path("reports/suspects.csv")


@dataclass(frozen=True, kw_only=True)
class Settings:
    """`note`: a line at the top; `samples`: images in the contact sheet; `suspects`: samples shown per detector."""

    note: str = ""
    samples: Count = 8
    suspects: Count = 24


@dataclass(frozen=True)
class Run:
    """Everything the report shows."""

    params: Params
    settings: Settings
    data: ImageSet
    variations: ImageSet
    truth: Truth | None
    metrics: dict[str, Any]
    scores: dict[str, Scores]
    about: dict[str, Any]
    sources: list[str]

    @property
    def poisoned(self) -> NDArray[np.bool_] | None:
        """Which samples are poisoned, where that is known and there are any."""
        return self.truth.mask if self.truth is not None and self.truth.mask.any() else None


def settings(params: Params) -> Settings:
    return Settings(**checked(params, "report", Settings))


def main() -> list[Path]:
    params = load_params()
    methods = section(params, "detect")["methods"]
    run = Run(
        params=params,
        settings=settings(params),
        data=open_poisoned(BASE, POISONED),
        variations=open_split(VARIATIONS, "train"),
        truth=read_truth(TRUTH),
        metrics=read_json(METRICS),
        scores={method: load_scores(SCORES / method) for method in methods},
        about=read_about(BASE),
        sources=read_sources(BASE, "train"),
    )
    page = Page("unpoison: report")
    if run.settings.note:
        page.text(run.settings.note)
    _what_was_run(page, run)
    _models(page, run)
    _detection(page, run)
    _pictures(page, run)
    _score_figures(page, run)
    _suspects(page, run)
    _training(page, run)
    _costs(page, run)
    for path, text in ((INDEX, page.html()), (SUMMARY, page.markdown())):
        with new_file(path) as staging:
            staging.write_text(text, encoding="utf-8")
    with new_file(SUSPECTS) as staging:
        _suspects_table(run).to_csv(staging, index=False, float_format="%.6g")
    return [INDEX, SUMMARY, SUSPECTS]


def _what_was_run(page: Page, run: Run) -> None:
    page.heading("What was run")
    attack, model = section(run.params, "attack"), section(run.params, "model")
    name = attack["name"]
    if run.truth is None:
        poison = "unknown: data of unknown origin"
    else:
        poison = "; ".join([f"{name} {_inline(attack.get(name) or {})}", *_goals(run.truth), _counts(run.truth)])
    rows = [
        ("data", _data(run)),
        ("attack", poison),
        ("network", _inline(model)),
        ("variations", _inline(section(run.params, "variations"))),
        ("seed", str(run.params["seed"])),
        ("trained on", read_json(BACKDOORED / "model.json")["made_by"]["machine"]),
    ]
    page.table(Table(("", "setting"), rows, frozenset({1})))


def _goals(truth: Truth) -> list[str]:
    """Per trigger, what its samples are to become."""
    goals = []
    for part in truth.parts:
        policy, name = part.policy, f"{part.attack}: " if len(truth.parts) > 1 else ""
        goal = {
            "all2one": f"target class {policy.target}",
            "all2all": f"class y to y + {policy.shift}",
            "clean_label": f"clean label, target class {policy.target}",
            "source_specific": f"classes {policy.sources} to target class {policy.target}",
        }[policy.label_policy]
        goals.append(name + goal)
    return goals


def _counts(truth: Truth) -> str:
    poisoned, covers, total = int(truth.mask.sum()), int(truth.cover.sum()), len(truth.mask)
    text = f"{poisoned} of {total} samples ({poisoned / total:.2%})"
    text += f", {covers} cover samples ({covers / total:.2%})" if covers else ""
    return text + (" in one draw: triggers are stamped in training" if truth.in_training else "")


def _data(run: Run) -> str:
    height, width, channels = run.data.base.shape[1:]
    counts = ", ".join(f"{count} {split}" for split, count in run.about["counts"].items())
    text = f"{run.about['name']} ({run.about['source']}): {counts}; {height}x{width}x{channels}"
    if left_out := run.about.get("defects"):
        text += f"; files that could not be used and were left out: {left_out}, listed in data/base/defects.txt"
    if run.truth is None and run.about.get("trusted") == "train":
        text += "; the reserve and the public images come from the same part as the suspect ones, so nothing vouches for them"
    return text


def _models(page: Page, run: Run) -> None:
    page.heading("Models")
    models = {"backdoored": run.metrics["backdoored"], "student": run.metrics["student"]}
    models |= {f"purified: {name}": values for name, values in run.metrics["purified"].items()}
    columns = {"ACC": "acc"}
    if run.truth is not None:
        columns |= {"ACC without target": "acc_without_target", "ASR": "asr", "RA": "ra"}
    rows = [[name, *(_figure(values, key) for key in columns.values())] for name, values in models.items()]
    page.table(Table(["model", *columns], rows))
    if run.truth is None:
        page.text("ACC is accuracy on the test split. Nothing is known about an attack, so there is no ASR.")
        return
    page.text(
        f"ACC: accuracy on clean test images. ASR: share of {run.metrics['attack']['tested']:.0f} triggered test images "
        f"({_tested(run.truth)}) that get the attacker's label (lower is better for a defence). RA: share of the same images "
        "that still get their true label. ACC without target: on clean test images of other classes than the target, as "
        "D-BR reports it."
    )
    _trigger(page, run)
    if all("asr" in values for values in models.values()):
        points = {name: (values["acc"], values["asr"]) for name, values in models.items()}
        page.figures([(figures.acc_against_asr(points), "ACC against ASR")])


def _tested(truth: Truth) -> str:
    """Which test images ASR counts."""
    return {
        "all2one": "of other classes than the target",
        "clean_label": "of other classes than the target",
        "all2all": "of all classes",
        "source_specific": "of the source classes",
    }[truth.policy.label_policy]


def _trigger(page: Page, run: Run) -> None:
    """How visible the triggers are, and, where there are several, which of them work."""
    keys = {"PSNR, dB": "psnr", "SSIM": "ssim", "L∞": "linf", "L2": "l2", "changed pixels": "changed"}
    rows, backdoored = [], run.metrics["backdoored"]
    for name, values in run.metrics["attack"]["trigger"].items():
        asr = backdoored.get("asr_of", {name: backdoored.get("asr")})
        rows.append([name, _figure(asr, name), *(_figure(values, key) for key in keys.values())])
    page.table(Table(["trigger at the test", "ASR of the backdoored", *keys], rows))


def _figure(values: dict[str, Any], key: str) -> str:
    """A figure to three places; a dash where there is none, such as the ASR of a trigger that no test image can carry."""
    return "–" if values.get(key) is None else f"{values[key]:.3f}"


def _detection(page: Page, run: Run) -> None:
    if "detection" not in run.metrics or run.truth is None:
        return
    page.heading("Detection")
    share, label = _worst_class(run)
    rows = []
    for method, values in run.metrics["detection"].items():
        numbers = [f"{values[key]:.3f}" for key in ("auroc", "ap", "tpr_at_1fpr", "tpr_at_5fpr")]
        rows.append([method, *numbers, _reason(method, values["auroc"], share, label, run.data.classes)])
    page.table(Table(("detector", "AUROC", "AP", "TPR at 1 % FPR", "TPR at 5 % FPR", "remark"), rows, frozenset({5})))


def _worst_class(run: Run) -> tuple[float, int]:
    """The largest share of poison in a class, by the labels given, and that class."""
    assert run.truth is not None
    shares = [float(run.truth.mask[run.data.labels == c].mean()) for c in np.unique(run.data.labels)]
    return max(shares), int(np.unique(run.data.labels)[int(np.argmax(shares))])


def _reason(method: str, auroc: float, share: float, label: int, classes: tuple[str, ...]) -> str:
    if method not in ("ac", "ss") or share < 0.25:
        return ""
    assumption = {
        "ac": "takes the smaller of two clusters of a class for the poison",
        "ss": "takes poison for a small outlying part of a class",
    }[method]
    end = "so it fails" if auroc < 0.9 else "the edge of what it can take"
    return f"{assumption}; here poison is {share:.0%} of class {classes[label]}, {end}"


def _pictures(page: Page, run: Run) -> None:
    page.heading("The same images through the pipeline", both=False)
    masks = run.scores.get("cd")
    candidates = np.arange(len(run.data)) if run.poisoned is None else np.flatnonzero(run.poisoned)
    # From all over the set: in a folder's order neighbours are of one class.
    candidates = np.concatenate([candidates[start :: run.settings.samples] for start in range(run.settings.samples)])
    if masks is not None and "index" in masks.aux:
        # Samples whose mask was kept come first, the most suspicious ones in front.
        kept = masks.aux["index"]
        candidates = np.concatenate([kept[np.isin(kept, candidates)], candidates[~np.isin(candidates, kept)]])
    chosen = candidates[: run.settings.samples]
    received = run.data.gather(chosen)
    rows = {}
    if run.truth is not None:
        clean = np.array(run.data.base[chosen])
        rows["clean"] = clean
        rows["received"] = received
        rows["difference ×10"] = _difference(clean, received)
        shown = _at_the_test(run, chosen, clean)
        if (shown != received).any():
            rows["at the test"] = shown
            rows["its difference ×10"] = _difference(clean, shown)
    else:
        rows["received"] = received
    per_image = len(run.variations) // len(run.data)
    rows["variation"] = run.variations.gather(chosen * per_image)
    if masks is not None and "index" in masks.aux:
        place = {int(key): row for row, key in enumerate(masks.aux["index"])}
        blank = np.full((*run.data.image_size, 3), 235, np.uint8)
        drawn = figures.heat(masks.aux["masks"])
        rows["CD mask"] = np.stack([drawn[place[int(k)]] if int(k) in place else blank for k in chosen])
    titles = [f"{_short(run.sources[key])}\nlabel {run.data.classes[run.data.labels[key]][:9]}" for key in chosen]
    caption = "Blue: pixels that Cognitive Distillation keeps. Grey: no mask was kept for this sample."
    page.figures([(figures.contact_sheet(rows, titles), caption)], wide=True)


def _difference(clean: Images, stamped: Images) -> Images:
    return (np.abs(stamped.astype(int) - clean) * 10).clip(0, 255).astype(np.uint8)


def _at_the_test(run: Run, chosen: IntArray, clean: Images) -> Images:
    """The same images as they would be stamped at the test: some triggers are stronger there, or another one."""
    assert run.truth is not None
    numbers, shown = run.truth.part[chosen].clip(0), clean.copy()
    for number, part in enumerate(run.truth.parts):
        mine = numbers == number
        if mine.any():
            shown[mine] = stamp(part.trigger, clean[mine], chosen[mine], train=False)
    return shown


def _score_figures(page: Page, run: Run) -> None:
    page.heading("Scores", both=False)
    pictures = [
        (figures.histogram(s.values.astype(float), run.poisoned, name), f"Scores of {name}")
        for name, s in run.scores.items()
    ]
    if "detection" in run.metrics:
        curves = pd.read_csv(CURVES / "roc.csv")
        by_method = {name: curves[name].to_numpy() for name in run.scores}
        pictures.append((figures.roc(curves["fpr"].to_numpy(), by_method), "ROC, false positive rate on a log scale"))
    page.figures(pictures)


def _suspects(page: Page, run: Run) -> None:
    page.heading("Most suspicious samples", both=False)
    end = "" if run.poisoned is None else " Marked in red: samples that are poisoned."
    page.text(f"By each detector, in order; all samples with their scores are in suspects.csv.{end}", both=False)
    for name, scores in run.scores.items():
        top = np.argsort(-scores.values, kind="stable")[: run.settings.suspects]
        images = run.data.gather(top)
        pictures = []
        for key, image in zip(top, images, strict=True):
            caption = f"{run.sources[key]} label {run.data.classes[run.data.labels[key]]}"
            marked = run.poisoned is not None and bool(run.poisoned[key])
            pictures.append((figures.thumbnail(image), caption, marked))
        page.text(f"{name}:", both=False)
        page.thumbnails(pictures)


def _suspects_table(run: Run) -> pd.DataFrame:
    """Every sample: source, label, each detector's score and rank (1 = most suspicious), sorted by mean rank."""
    names = [run.data.classes[label] for label in run.data.labels]
    table = pd.DataFrame({"sample": run.sources, "label": names})
    ranks = []
    for name, scores in run.scores.items():
        table[f"{name}_score"] = scores.values
        table[f"{name}_rank"] = pd.Series(scores.values).rank(ascending=False, method="first").astype(int)
        ranks.append(table[f"{name}_rank"])
    table["mean_rank"] = pd.concat(ranks, axis=1).mean(axis=1)
    return table.sort_values("mean_rank", kind="stable")


def _training(page: Page, run: Run) -> None:
    page.heading("Training", both=False)
    tables = {name: pd.read_csv(TRAINING / f"{name}.csv") for name in ("backdoored", "student")}
    accuracy = {name: (t["epoch"].to_numpy(), t["accuracy"].to_numpy()) for name, t in tables.items()}
    pictures = [(figures.training_curves(accuracy, "accuracy"), "Accuracy on the labels trained with")]
    losses = load_array(TRAINING / "losses" / "losses.npy")
    epochs = np.arange(1, len(losses) + 1)
    kinds: dict[str, Any] = {"all samples": (epochs, np.nanmean(losses, 1))}
    if run.poisoned is not None:
        clean, poisoned = (np.nanmean(losses[:, some], 1) for some in (~run.poisoned, run.poisoned))
        kinds = {"clean": (epochs, clean), "poisoned": (epochs, poisoned)}
    loss = figures.training_curves(kinds, "loss", log=True)
    pictures.append((loss, "Loss of the backdoored model: poison is learned early"))
    page.figures(pictures)


def _costs(page: Page, run: Run) -> None:
    methods = {f"detect@{name}" for name in run.scores} | {f"purify@{name}" for name in run.metrics["purified"]}
    # An earlier experiment may have left costs of methods that this run does not have.
    costs = {
        name: cost for name, cost in read_costs().items() if name != "report" and ("@" not in name or name in methods)
    }
    if not costs:
        page.text("No stage was run in this working copy, so there are no times to show.", both=False)
        return
    page.heading("Cost", both=False)
    ordered = sorted(costs.items(), key=lambda item: -item[1]["seconds"])
    rows = [[name, f"{cost['seconds']:.1f}", f"{cost['peak_mib']:.0f}"] for name, cost in ordered]
    rows.append(
        ["all", f"{sum(c['seconds'] for c in costs.values()):.1f}", f"{max(c['peak_mib'] for c in costs.values()):.0f}"]
    )
    page.table(Table(("stage", "seconds", "peak MiB"), rows), both=False)
    page.text(
        "Measured when each stage first made its present output; this stage itself is not in the table.", both=False
    )


def _short(name: str) -> str:
    """The file's name, for a column of a sheet: its end, where it is long. The full name is in the list of suspects."""
    name = name.rsplit("/", 1)[-1]
    return name if len(name) <= 11 else "…" + name[-10:]


def _inline(block: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in block.items() if value is not None)


if __name__ == "__main__":
    run_stage("report", main)
