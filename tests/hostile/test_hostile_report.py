"""Damaged and foreign inputs of the report: each ends in one line that names the file, and the page of before is kept."""

from __future__ import annotations

import io
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import report
from hostile.harness import Accepted, Case, Refused, knock
from hostile.unwatched import answered
from unpoison.core.files import write_json
from unpoison.core.manifest import write_manifest
from unpoison.data.scores import Assumption, Scores, save_scores
from unpoison.data.store import new_overlay, open_poisoned, open_split, write_base
from unpoison.data.verdicts import Verdict, save_verdict
from unpoison.poisoning.policy import Policy
from unpoison.poisoning.truth import Part, Truth, write_truth
from unpoison.reporting import figures
from unpoison.reporting.costs import costs_table
from unpoison.reporting.metrics_diff import metrics_table, read_differences

Make = Callable[[Path], object]
COUNT, CLASSES = 6, ("cat", "dog")
GRADED = {"acc": 0.9, "acc_without_target": 0.8, "asr": 0.7, "ra": 0.2}
METRICS = {
    "attack": {"poisoned": 0.2, "cover": 0.0, "tested": 3.0, "trigger": {"badnets": {"psnr": 20.0, "ssim": 0.9}}},
    "backdoored": GRADED,
    "purified": {"ft": GRADED},
    "detection": {"ss": {"auroc": 0.9, "ap": 0.5, "tpr_at_1fpr": 0.5, "tpr_at_5fpr": 0.5, "precision_at_count": 0.5}},
}
FILES = {
    "reports/training/backdoored.csv": "epoch,loss,accuracy,lr\n1,2.0,0.5,0.1\n2,1.0,0.75,0.1\n",
    "reports/curves/roc.csv": "fpr,ss\n0.0,0.0\n0.5,0.5\n1.0,1.0\n",
    "reports/curves/intervals.csv": "level,ss.auroc\n0.025,0.8\n0.975,1.0\n",
    "reports/curves/connectivity.csv": "t,ft.acc,ft.asr\n0.0,0.9,0.0\n1.0,0.8,1.0\n",
    "reports/curves/rounds.csv": "round,acc,asr\n1,0.5,0.0\n2,0.8,1.0\n",
    "reports/index.html": "the page of before",
    "reports/summary.md": "the summary of before",
    "reports/suspects.csv": "the list of before",
    "reports/problems.csv": "the problems of before",
}


def project(folder: Path, *, scores: Scores | None = None, target: int = 0) -> None:
    """A run of six images, as the stages leave it: base, overlay, truth, a model's description, scores, metrics, curves."""
    os.chdir(folder)
    images, labels = np.arange(COUNT * 48, dtype=np.uint8).reshape(COUNT, 4, 4, 3), np.arange(COUNT) % 2
    splits = {"train": (images, labels), "test": (images, labels)}
    base, poisoned = Path("data/base"), Path("data/poisoned")
    write_base(base, splits, classes=CLASSES, name="pets", source="here", licence="-")
    train = open_split(base, "train")
    with new_overlay(poisoned, train, np.array([1]), np.array([0])) as writer:
        writer.write(np.array([0]), 255 - images[1:2])
    digest = open_poisoned(base, poisoned).digest
    mask = np.arange(COUNT) == 1
    part = Part("badnets", Policy(target=target), {"size": 2})
    write_truth(
        Path("data/truth"),
        Truth("badnets", (part,), mask, np.where(mask, 0, -1).astype(np.int8), labels),
        {"poisoned": digest},
    )
    model = Path("models/backdoored")
    model.mkdir(parents=True)
    (model / "model.safetensors").write_bytes(b"weights")
    network = {"name": "resnet18", "arguments": {}, "num_classes": 2, "image_size": [4, 4], "channels": 3}
    network |= {"mean": [0.5], "std": [0.25]}
    about = {"format": "unpoison-model-1", "classes": list(CLASSES), "network": network}
    made_by = {"seed": 0, "machine": "a machine", "recipe": {"epochs": 2}}
    write_manifest(model, "model.json", {**about, "made_by": made_by, "made_from": {"poisoned": digest}})
    present = {
        "poisoned": digest,
        "backdoored": json.loads((model / "model.json").read_text())["files"]["model.safetensors"],
    }
    scored = scores or Scores(np.arange(COUNT, dtype=np.float32), 1, {}, "", Assumption("none", 0.9))
    save_scores(scored, Path("data/scores/ss"), method="ss", parameters={}, made_from=present)
    write_json(Path("data/graded.json"), {"made_from": present})
    for name, text in FILES.items():
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).write_text(text)
    write_json(Path("reports/metrics.json"), METRICS)
    Path("reports/training/losses").mkdir()
    np.save("reports/training/losses/losses.npy", np.ones((2, COUNT), np.float32))
    for name in ("params.yaml", "params"):
        source = Path(__file__).resolve().parents[2] / name
        shutil.copytree(source, name) if source.is_dir() else shutil.copy(source, name)


def door(folder: Path) -> Any:
    """The stage. Where it ends in an error the files of before are all there; figures are not drawn."""
    os.chdir(folder)
    figures.png_of = figures.thumbnail = lambda *_: b"picture"  # type: ignore[assignment]
    outputs = [Path("reports") / name for name in ("index.html", "summary.md", "suspects.csv", "problems.csv")]
    try:
        report.main()
    except BaseException:
        assert [path.read_text() for path in outputs] == [FILES[str(path)] for path in outputs]
        raise
    return [path.read_text(encoding="utf-8") for path in outputs]


def replaced(name: str, content: str | bytes) -> Make:
    def make(folder: Path) -> None:
        project(folder)
        Path(name).write_bytes(content.encode() if isinstance(content, str) else content)

    return make


def metrics(*keys: str, value: Any = None, text: str = "") -> Make:
    """The metrics with the value at these keys replaced, or taken away."""

    def make(folder: Path) -> None:
        project(folder)
        changed = json.loads(json.dumps(METRICS))
        block = changed
        for key in keys[:-1]:
            block = block[key]
        if value is None and not text:
            del block[keys[-1]]
        else:
            block[keys[-1]] = value
        # `text` stands for what Python would not write as JSON.
        Path("reports/metrics.json").write_text(json.dumps(changed).replace('"HERE"', text))

    return make


def losses(array: Any) -> Make:
    def make(folder: Path) -> None:
        project(folder)
        np.save("reports/training/losses/losses.npy", array)

    return make


def verdict(classes: int, side: int, channels: int = 3) -> Make:
    """A run with a verdict of so many classes, with patches of this size."""

    def make(folder: Path) -> None:
        project(folder)
        present = json.loads(Path("data/graded.json").read_text())["made_from"]
        shape = (classes, channels, side, side)
        aux = {"masks": np.ones((classes, side, side), np.float16), "patterns": np.zeros(shape, np.uint8)}
        said = Verdict(np.ones(classes, np.float32), np.ones(classes, bool), "always", 1, "", aux)
        save_verdict(said, Path("data/verdicts/one"), method="one", parameters={}, made_from=present)

    return make


def scores(values: Any, **aux: Any) -> Make:
    return lambda folder: project(folder, scores=Scores(np.asarray(values, np.float32), 1, aux))


def resealed(name: str, change: Callable[[dict[str, Any]], object], manifest: str = "manifest.json") -> Make:
    """A manifest with entries changed; what is made from it names it by its digest, and is of another run then."""

    def make(folder: Path) -> None:
        project(folder)
        path = Path(name) / manifest
        about = json.loads(path.read_text())
        change(about)
        write_json(path, about)

    return make


def fewer_sources(folder: Path) -> None:
    """A base whose list of names is a line short, in good order otherwise."""
    project(folder)
    path = Path("data/base/train/sources.txt")
    path.write_text("one\n")
    about = json.loads(Path("data/base/manifest.json").read_text())
    files = about.pop("files")
    assert files
    write_manifest(Path("data/base"), "manifest.json", about)
    overlay = json.loads(Path("data/poisoned/manifest.json").read_text())
    overlay["base"] = open_split(Path("data/base"), "train").digest
    write_json(Path("data/poisoned/manifest.json"), overlay)


def missing(name: str) -> Make:
    def make(folder: Path) -> None:
        project(folder)
        Path(name).unlink()

    return make


def _bytes_of(array: np.ndarray) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, array)
    return buffer.getvalue()


IN_METRICS, ROC, CURVE = r"^reports/metrics\.json: ", "reports/curves/roc.csv", "reports/training/backdoored.csv"
LOSSES, INTERVALS = "reports/training/losses/losses.npy", "reports/curves/intervals.csv"
CONNECTIVITY, ROUNDS = "reports/curves/connectivity.csv", "reports/curves/rounds.csv"
SPENT = {"epsilon": 3.0, "delta": 0.001, "noise": 1.0, "clip": 1.0}
CASES = [
    Case(
        "as-it-is",
        project,
        Accepted(lambda texts: "target class 0 (cat)" in texts[0] and "| backdoored | 0.900" in texts[1]),
    ),
    Case(
        "metrics-nan",
        metrics("backdoored", "asr", value="HERE", text="NaN"),
        Refused(IN_METRICS + ".*NaN found"),
    ),
    Case(
        "metrics-infinite",
        metrics("backdoored", "acc", value="HERE", text="-Infinity"),
        Refused(IN_METRICS + ".*-Infinity found"),
    ),
    Case(
        "metrics-too-large",
        metrics("backdoored", "acc", value="HERE", text="1e999"),
        Refused(IN_METRICS + ".*1e999 found"),
    ),
    Case(
        "metrics-huge",
        metrics("attack", "tested", value="HERE", text="9" * 4000),
        Refused(IN_METRICS + "attack.tested: a huge"),
    ),
    Case(
        "metrics-percent",
        metrics("purified", "ft", "acc", value=65.79),
        Refused(IN_METRICS + "purified.ft.acc: 65.79 found"),
    ),
    Case("metrics-text", metrics("backdoored", "ra", value="0.5"), Refused(IN_METRICS + "backdoored.ra: '0.5' found")),
    Case("metrics-flag", metrics("backdoored", "acc", value=True), Refused(IN_METRICS + "backdoored.acc: True found")),
    Case("metrics-list", metrics("backdoored", value=[1]), Refused(IN_METRICS + "backdoored: a list found")),
    Case(
        "metrics-number-for-a-family",
        metrics("purified", value=1),
        Refused(IN_METRICS + "purified: 1 found, allowed: a block"),
    ),
    Case(
        "metrics-number-for-a-model", metrics("purified", "ft", value=1), Refused(IN_METRICS + "purified.ft: 1 found")
    ),
    Case("metrics-without-a-model", metrics("backdoored"), Refused(IN_METRICS + "backdoored: nothing found")),
    Case(
        "metrics-without-acc", metrics("purified", "ft", "acc"), Refused(IN_METRICS + "purified.ft.acc: nothing found")
    ),
    Case("metrics-without-attack", metrics("attack"), Refused(IN_METRICS + "attack: nothing found")),
    Case(
        "metrics-without-auroc",
        metrics("detection", "ss", "auroc"),
        Refused(IN_METRICS + "detection.ss.auroc: nothing"),
    ),
    Case(
        "metrics-scored-without-poison",
        metrics("detection", "ss", "scored", value=20),
        Refused(IN_METRICS + "detection.ss.scored_poisoned: nothing"),
    ),
    Case(
        "metrics-number-for-a-verdict", metrics("models", value={"one": 1}), Refused(IN_METRICS + "models.one: 1 found")
    ),
    Case(
        "metrics-verdict-without-flags",
        metrics("models", value={"one": {"anomaly": 1.0}}),
        Refused(IN_METRICS + "models.one.flagged: nothing found"),
    ),
    Case(
        "metrics-hit-above-one",
        metrics("models", value={"one": {"anomaly": 1.0, "flagged": 1.0, "hit": 2.0}}),
        Refused(IN_METRICS + "models.one.hit: 2.0 found, allowed: a fraction from 0 to 1"),
    ),
    Case(
        "metrics-false-alarms-block",
        metrics("models", value={"one": {"anomaly": 1.0, "flagged": 1.0, "false_alarms": {}}}),
        Refused(IN_METRICS + "models.one.false_alarms: a dict found"),
    ),
    Case(
        "metrics-collapse-of-no-class",
        metrics("backdoored", "collapsed", value={"class": 7, "share": 1.0}),
        Refused(IN_METRICS + ".*class: 7 found, allowed: 0 to 1"),
    ),
    Case(
        "metrics-collapse-number",
        metrics("backdoored", "collapsed", value=1),
        Refused(IN_METRICS + "backdoored.collapsed: 1 found"),
    ),
    Case(
        "metrics-deep",
        metrics("x", value="HERE", text='{"a":' * 20 + "1" + "}" * 20),
        Refused(IN_METRICS + ".*blocks in blocks"),
    ),
    Case("metrics-very-deep", replaced("reports/metrics.json", '{"a":' * 100_000), Refused("metrics.json: ")),
    Case(
        "metrics-cut",
        replaced("reports/metrics.json", json.dumps(METRICS)[:100]),
        Refused(r"metrics\.json: not readable as JSON"),
    ),
    Case(
        "metrics-latin-1",
        replaced("reports/metrics.json", b'{"\xe9": 1}'),
        Refused(r"metrics\.json: not readable as JSON"),
    ),
    Case("metrics-gone", missing("reports/metrics.json"), Refused(r"metrics\.json: no such file")),
    Case(
        "metrics-rule-without-rates",
        metrics("detection", "ss", "flagged", value=3),
        Refused(IN_METRICS + "detection.ss.flagged_tpr: nothing"),
    ),
    Case(
        "metrics-inputs-percent",
        metrics("inputs", value={"strip": {"auroc": 90.0}}),
        Refused(IN_METRICS + "inputs.strip.auroc: 90.0 found"),
    ),
    Case("intervals-gone", missing(INTERVALS), Refused(r"intervals\.csv: no such file")),
    Case(
        "intervals-one-row",
        replaced(INTERVALS, "level,ss.auroc\n0.025,0.8\n"),
        Refused(r"intervals\.csv: 1 rows found"),
    ),
    Case(
        "intervals-percent",
        replaced(INTERVALS, "level,ss.auroc\n0.025,80\n0.975,1\n"),
        Refused(r"intervals\.csv: line 2: ss\.auroc: .80. found"),
    ),
    Case("rounds-gone", missing(ROUNDS), Refused(r"rounds\.csv: no such file")),
    Case("no-round", replaced(ROUNDS, "round,acc,asr\n"), Accepted(lambda texts: "after each round" not in texts[0])),
    Case("rounds-shown", project, Accepted(lambda texts: "after each round" in texts[0])),
    Case("rounds-percent", replaced(ROUNDS, "round,acc\n1,50\n"), Refused(r"rounds\.csv: line 2: acc: '50' found")),
    Case(
        "rounds-back",
        replaced(ROUNDS, "round,acc\n2,0.5\n1,0.5\n"),
        Refused(r"round: allowed: numbers in rising order"),
    ),
    Case("line-gone", missing(CONNECTIVITY), Refused(r"connectivity\.csv: no such file")),
    Case("line-of-no-place", replaced(CONNECTIVITY, "t\n"), Accepted(lambda texts: "backdoored ones" not in texts[0])),
    Case(
        "line-of-a-method-without-acc",
        replaced(CONNECTIVITY, "t,ft.asr\n0,0\n1,1\n"),
        Accepted(lambda texts: "backdoored ones" not in texts[0]),
    ),
    Case(
        "line-percent",
        replaced(CONNECTIVITY, "t,ft.acc\n0,0.5\n1,50\n"),
        Refused(r"connectivity\.csv: line 3: ft\.acc: '50.0' found, allowed: fractions"),
    ),
    Case(
        "line-back", replaced(CONNECTIVITY, "t,ft.acc\n1,0.5\n0,0.5\n"), Refused(r"t: allowed: places in rising order")
    ),
    Case("line-without-places", replaced(CONNECTIVITY, "x\n1\n"), Refused(r"columns x found, t is missing")),
    Case(
        "metrics-der-above-one",
        metrics("purified", "ft", "der", value=1.5),
        Refused(IN_METRICS + "purified.ft.der: 1.5 found, allowed: a fraction from 0 to 1"),
    ),
    Case(
        "metrics-retuned-text",
        metrics("purified", "ft", "retuned_asr", value="1"),
        Refused(IN_METRICS + "purified.ft.retuned_asr: '1' found"),
    ),
    Case(
        "metrics-control-block",
        metrics("purified", "ft", "retuned_asr_clean", value={"x": 1}),
        Refused(IN_METRICS + "purified.ft.retuned_asr_clean: a dict found"),
    ),
    Case("metrics-clean-number", metrics("clean", value=1), Refused(IN_METRICS + "clean: 1 found, allowed: a block")),
    Case("roc-gone", missing(ROC), Refused(r"roc\.csv: no such file")),
    Case("roc-empty", replaced(ROC, ""), Refused(r"roc\.csv: not readable as a table")),
    Case("roc-no-rows", replaced(ROC, "fpr,ss\n"), Refused(r"roc\.csv: fpr: 0 rates found")),
    Case("roc-other-columns", replaced(ROC, "a,b\n1,2\n"), Refused(r"roc\.csv: columns a, b found, fpr is missing")),
    Case(
        "roc-text", replaced(ROC, "fpr,ss\n0,0\n1,x\n"), Refused(r"roc\.csv: line 3: ss: 'x' found, allowed: fractions")
    ),
    Case("roc-huge", replaced(ROC, "fpr,ss\n0,0\n1," + "9" * 5000), Refused(r"roc\.csv: ")),
    Case("roc-huge-column", replaced(ROC, "fpr,ss\n0," + "9" * 500), Refused(r"roc\.csv: line 2: ss: '9+' found")),
    Case("roc-nan", replaced(ROC, "fpr,ss\n0,0\n1,\n"), Refused(r"roc\.csv: line 3: ss: .nan. found")),
    Case("roc-percent", replaced(ROC, "fpr,ss\n0,0\n1,97\n"), Refused(r"roc\.csv: line 3: ss: .97. found")),
    Case("roc-backwards", replaced(ROC, "fpr,ss\n1,0\n0,1\n"), Refused(r"roc\.csv: fpr: 2 rates found, .* rising")),
    Case("roc-long-row", replaced(ROC, "fpr,ss\n0,0,0\n1,1,1\n"), Refused(r"roc\.csv: not readable as a table")),
    Case("roc-nul", replaced(ROC, b"fpr,ss\n0,\0\n"), Refused(r"roc\.csv: ")),
    Case(
        "curve-latin-1",
        replaced(CURVE, b"epoch,accuracy\n1,\xe9\n"),
        Refused(r"backdoored\.csv: not readable as a table"),
    ),
    Case(
        "curve-infinite",
        replaced(CURVE, "epoch,accuracy\n1,inf\n"),
        Refused(r"backdoored\.csv: line 2: accuracy: .inf. found"),
    ),
    Case(
        "curve-percent",
        replaced(CURVE, "epoch,accuracy\n1,97.5\n"),
        Refused(r"backdoored\.csv: line 2: accuracy: .*97.5"),
    ),
    Case(
        "curve-flag", replaced(CURVE, "epoch,accuracy\n1,True\n"), Refused(r"backdoored\.csv: line 2: accuracy: .*True")
    ),
    Case(
        "curve-no-column", replaced(CURVE, "epoch,loss\n1,1\n"), Refused(r"backdoored\.csv: columns epoch, loss found")
    ),
    Case(
        "curve-carriage-returns",
        replaced(CURVE, b"epoch,accuracy\r\n1,0.5\r\n"),
        Accepted(lambda texts: "Training" in texts[0]),
    ),
    Case("curve-binary", replaced(CURVE, bytes(range(256))), Refused(r"backdoored\.csv: ")),
    Case("losses-gone", missing(LOSSES), Refused(r"losses\.npy: no such file")),
    Case("losses-cut", replaced(LOSSES, _bytes_of(np.ones((2, COUNT), np.float32))[:-4]), Refused(r"losses\.npy: ")),
    Case(
        "losses-of-other-samples",
        losses(np.ones((2, COUNT + 1), np.float32)),
        Refused(r"losses\.npy: float32 of shape \(2, 7\) found"),
    ),
    Case("losses-flat", losses(np.ones(COUNT, np.float32)), Refused(r"losses\.npy: float32 of shape \(6,\) found")),
    Case(
        "losses-infinite",
        losses(np.full((2, COUNT), np.inf, np.float32)),
        Refused(r"losses\.npy: 12 losses are infinite"),
    ),
    Case("losses-text", losses(np.array([["a"] * COUNT])), Refused(r"losses\.npy: not a readable")),
    Case("losses-objects", replaced(LOSSES, _bytes_of(np.array([None], object))), Refused(r"losses\.npy: ")),
    Case("verdict-intact", verdict(2, 4), Accepted(lambda texts: "Models inspected" in texts[1])),
    Case(
        "verdict-of-other-classes",
        verdict(3, 4),
        Refused(r"verdicts/one/verdict\.json: classes: '3' found, allowed: 2"),
    ),
    Case(
        "patches-of-another-size",
        verdict(2, 5),
        Refused(r"data/verdicts/one: patterns \[2, 3, 5, 5\] found, allowed: of"),
    ),
    Case(
        "patches-of-one-channel",
        verdict(2, 4, 1),
        Refused(r"data/verdicts/one: patterns \[2, 1, 4, 4\] found, allowed: of"),
    ),
    Case("scores-of-other-samples", scores(np.arange(5.0)), Refused(r"data/scores/ss.*(5|float32 \[5\])")),
    Case(
        "masks-of-no-sample",
        scores(np.arange(6.0), masks=np.zeros((1, 4, 4), np.float16), index=np.array([6])),
        Refused(r"data/scores/ss/aux\.npz: index"),
    ),
    Case(
        "masks-of-another-size",
        scores(np.arange(6.0), masks=np.zeros((1, 9, 9), np.float16), index=np.array([1])),
        Refused(r"data/scores/ss: masks \[1, 9, 9\]"),
    ),
    Case(
        "masks-without-samples",
        scores(np.arange(6.0), masks=np.zeros((1, 4, 4), np.float16)),
        Refused(r"data/scores/ss/aux\.npz: arrays"),
    ),
    Case(
        "target-of-no-class",
        lambda folder: project(folder, target=5),
        Refused(r"data/truth/truth\.json: parts\.0\.policy\.target: 5"),
    ),
    Case("sources-fewer", fewer_sources, Refused(r"data/base/train/sources\.txt")),
    Case(
        "model-without-a-network",
        resealed("models/backdoored", lambda about: about.pop("network"), "model.json"),
        Refused(r"models/backdoored/model\.json: network: nothing found"),
    ),
    Case(
        "model-without-a-seed",
        resealed("models/backdoored", lambda about: about["made_by"].pop("seed"), "model.json"),
        Accepted(lambda texts: "| seed | not recorded |" in texts[1]),
    ),
    Case(
        "model-recipe-number",
        resealed("models/backdoored", lambda about: about["made_by"].update(recipe=3), "model.json"),
        Accepted(lambda texts: "| training | 3 |" in texts[1]),
    ),
    Case(
        "model-privacy-spent",
        resealed("models/backdoored", lambda about: about["made_by"].update(privacy=SPENT), "model.json"),
        Accepted(lambda texts: "epsilon 3 at delta 0.001, by DP-SGD with noise 1 and clip 1" in texts[1]),
    ),
    Case(
        "model-privacy-cut",
        resealed("models/backdoored", lambda about: about["made_by"].update(privacy={"epsilon": 3.0}), "model.json"),
        Refused(r"models/backdoored/model\.json: made_by\.privacy: "),
    ),
    Case(
        "model-privacy-word",
        resealed(
            "models/backdoored", lambda about: about["made_by"].update(privacy=SPENT | {"clip": "x"}), "model.json"
        ),
        Refused(r"models/backdoored/model\.json: made_by\.privacy: "),
    ),
    Case(
        "model-federation-number",
        resealed("models/backdoored", lambda about: about["made_by"].update(federation=3), "model.json"),
        Refused(r"models/backdoored/model\.json: made_by\.federation: 3 given"),
    ),
]
WATCHED = ("as-it-is", "deep", "huge", "binary", "objects", "very", "cut", "nul")


def watched(case: Case) -> bool:
    return any(word in case.name for word in WATCHED)


@pytest.mark.parametrize("case", [*filter(watched, CASES)], ids=str)
def test_report(case: Case, tmp_path: Path) -> None:
    knock(door, case, tmp_path)


def test_reports_with_one_thing_wrong(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(figures, "png_of", figures.png_of)
    monkeypatch.setattr(figures, "thumbnail", figures.thumbnail)
    answered(door, [case for case in CASES if not watched(case)], tmp_path)


def small_door(folder: Path) -> Any:
    """Costs as they are printed, and the differences of metrics."""
    text = (folder / "differences").read_bytes() if (folder / "differences").exists() else b""
    return [costs_table(folder), metrics_table(read_differences(text))]


def file(name: str, content: str | bytes) -> Make:
    return lambda folder: (folder / name).write_bytes(content.encode() if isinstance(content, str) else content)


SMALL = [
    Case("cost-deep", file("train.json", '{"a":' * 100_000), Accepted(lambda both: both[0].startswith("left out: "))),
    Case(
        "cost-fifo",
        lambda folder: os.mkfifo(folder / "train.json"),
        Accepted(lambda both: both[0].startswith("left out: ")),
    ),
    Case(
        "cost-name",
        file("\x1b[2J.json", '{"seconds": 1, "peak_mib": 2}'),
        Accepted(lambda both: "| \\\\x1b[2J | 1.0 | 2 |" in both[0]),
    ),
    Case("differences-deep", file("differences", "[" * 100_000), Refused("standard input: not readable as JSON")),
    Case(
        "differences-of-text",
        file("differences", '{"m": {"<b>|": {"old": "x", "new": 1}}}'),
        Accepted(lambda both: both[1].endswith("| \\<b>\\| | x | 1.0000 | changed |\n")),
    ),
]


@pytest.mark.parametrize("case", SMALL, ids=str)
def test_costs_and_differences(case: Case, tmp_path: Path) -> None:
    knock(small_door, case, tmp_path)


def test_the_three_files_are_replaced_together(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    texts = {tmp_path / name: name for name in ("one", "two", "three")}
    for path in texts:
        path.write_text("before")
    with pytest.raises(UnicodeEncodeError):
        report.write_together({**texts, tmp_path / "three": "half a pair \ud800"})
    assert [path.read_text() for path in texts] == ["before"] * 3
    assert len(list(tmp_path.iterdir())) == 3
    report.write_together(texts)
    assert [path.read_text() for path in texts] == ["one", "two", "three"]
