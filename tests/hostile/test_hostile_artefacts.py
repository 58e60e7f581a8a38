"""Artefacts of whatever origin at the doors of the stages that read them: every digest fits what was tampered with."""

from __future__ import annotations

import io
import os
import shutil
import struct
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from hostile import artefacts
from hostile.artefacts import (
    SAMPLES,
    archive,
    array,
    intact,
    raw,
    read_base,
    read_run,
    said,
    tampered,
    within,
)
from hostile.harness import Accepted, Case, Refused, knock
from unpoison.core.files import read_json
from unpoison.core.manifest import is_made_from
from unpoison.data.features import read_features
from unpoison.data.scores import load_scores
from unpoison.data.stress import load_stressed
from unpoison.data.verdicts import load_verdict

MANIFEST, OVERLAY, TRUTH = "base/manifest.json", "poisoned/manifest.json", "truth/truth.json"
TRIGGER, SCORES, VERDICT = "triggers/blended/trigger.json", "scores/scores.json", "verdict/verdict.json"
STRESS = "stress/stress.json"


def read_scores(folder: Path) -> Any:
    scores = load_scores(folder / "scores", method="cd", count=SAMPLES)
    assert scores.flagged is not None
    return [scores.values.tolist(), sorted(scores.aux), scores.forward_passes, int(scores.flagged.sum())]


def read_verdict(folder: Path) -> Any:
    verdict = load_verdict(folder / "verdict", method="mm_bd", classes=2)
    return [verdict.anomaly.tolist(), verdict.flagged.tolist(), sorted(verdict.aux), verdict.forward_passes]


def read_stress(folder: Path) -> Any:
    tests = load_stressed(folder / "stress", method="fst")
    return [dict(tests.figures), tests.line.t, tests.line.acc, tests.line.asr]


def read_rows(folder: Path) -> Any:
    features = read_features(folder / "features")
    return [features.logits[np.arange(len(features.logits))].tolist(), list(features.penultimate.shape)]


def read_any(folder: Path) -> Any:
    """Whether what is there belongs to a run, as `evaluate` asks of everything before it reads it."""
    return [is_made_from(folder / "scores", "scores.json", poisoned="x"), len(read_json(folder / "scores/scores.json"))]


def valid(door: Callable[[Path], Any]) -> Callable[[Any], bool]:
    """Whether a door's value is that of the intact artefacts."""
    return lambda value: value == door(intact())


def doubled(key: bytes) -> Callable[[bytes], bytes]:
    return lambda data: data.rstrip()[:-1] + b', "' + key + b'": 0}'


def linked(name: str, target: Callable[[Path], object]) -> artefacts.Change:
    def change(folder: Path) -> None:
        place = str(target(folder))
        (folder / name).unlink()
        (folder / name).symlink_to(place)

    return change


def piped(name: str) -> artefacts.Change:
    def change(folder: Path) -> None:
        (folder / name).unlink()
        os.mkfifo(folder / name)

    return change


def outside(folder: Path) -> Path:
    """A file beside the folder that a case may not open."""
    shutil.copy(folder / "base/train/labels.npy", folder.parent / "labels.npy")
    return folder.parent / "labels.npy"


def listed_outside(name: str) -> artefacts.Change:
    return within(MANIFEST, lambda about: about["files"].update({name: "0" * 64}))


def sampled(index: Any, scores: int | None = None) -> artefacts.Change:
    """Scores of the samples `index`, as many of them as there are samples, or another number."""

    def change(folder: Path) -> None:
        np.save(folder / "scores/index.npy", np.asarray(index))
        for name in ("scores", "flagged"):
            values = np.load(folder / f"scores/{name}.npy")
            np.save(folder / f"scores/{name}.npy", values[: len(index) if scores is None else scores])
        within(SCORES, lambda about: about.update(scored=len(index), files=about["files"] | {"index.npy": ""}))(folder)

    return change


def header(shape: str, dtype: str = "'|u1'", body: bytes = b"") -> bytes:
    """A .npy file whose header may say anything."""
    text = f"{{'descr': {dtype}, 'fortran_order': False, 'shape': {shape}, }}".encode()
    text += b" " * (-(len(text) + 11) % 64) + b"\n"
    return b"\x93NUMPY\x01\x00" + struct.pack("<H", len(text)) + text + body


def bomb(_: bytes) -> bytes:
    """A .npz archive of a few KiB that holds 4 GiB of zeros."""
    file = io.BytesIO()
    with (
        zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED, compresslevel=1) as packed,
        packed.open("pattern.npy", "w") as entry,
    ):
        entry.write(header(f"({1 << 32},)"))
        block = bytes(1 << 20)
        for _ in range(16):
            entry.write(block)
    return file.getvalue()


def replaced(name: str, data: bytes) -> artefacts.Change:
    return raw(name, lambda _: data)


def older(folder: Path) -> None:
    """The truth of the run before, as after a kill between the writing of the overlay and that of the truth."""
    np.save(folder / "poisoned/labels.npy", np.load(folder / "poisoned/labels.npy")[::-1].copy())


def set_in(block: str, **values: Any) -> Callable[[dict[str, Any]], object]:
    return lambda about: about[block].update(values)


def of_policy(**values: Any) -> artefacts.Change:
    return within(TRUTH, lambda about: about["parts"][0]["policy"].update(values))


BASE = [
    Case("intact", tampered(), Accepted(valid(read_base))),
    Case(
        "labels-that-are-no-class",
        tampered(array("base/train/labels.npy", lambda a: a + 5)),
        Refused("labels 5 to 14 found, allowed: 0 to 9"),
    ),
    Case(
        "unlabelled-training-samples",
        tampered(array("base/train/labels.npy", lambda a: a - 1)),
        Refused("labels -1 to 8 found"),
    ),
    Case(
        "labels-of-32-bits",
        tampered(array("base/train/labels.npy", lambda a: a.astype(np.int32))),
        Refused("int32 of shape"),
    ),
    Case(
        "labels-as-real-numbers",
        tampered(array("base/train/labels.npy", lambda a: a + 0.5)),
        Refused("float64 of shape"),
    ),
    Case(
        "fewer-labels-than-images",
        tampered(array("base/train/labels.npy", lambda a: a[:-1])),
        Refused(r"labels\.npy: int64 of shape \(39,\)"),
    ),
    Case(
        "labels-in-two-dimensions",
        tampered(array("base/train/labels.npy", lambda a: a[:, None])),
        Refused(r"shape \(40, 1\)"),
    ),
    Case(
        "labels-pickled",
        tampered(array("base/train/labels.npy", lambda a: a.astype(object))),
        Refused(r"labels\.npy: not a readable \.npy array"),
    ),
    Case(
        "images-of-16-bits",
        tampered(array("base/train/images.npy", lambda a: a.astype(np.uint16))),
        Refused("uint16 of shape"),
    ),
    Case(
        "images-of-another-side",
        tampered(array("base/train/images.npy", lambda a: a[:, :8])),
        Refused(r"images of shape \(40, 8, 16, 3\) found"),
    ),
    Case(
        "fewer-images-than-counted",
        tampered(array("base/train/images.npy", lambda a: a[:30])),
        Refused(r"images of shape \(30, 16, 16, 3\)"),
    ),
    Case(
        "header-of-4-GiB",
        tampered(replaced("base/train/images.npy", header("(65536, 256, 256, 3)"))),
        Refused("its header stands for"),
    ),
    Case(
        "header-of-no-size",
        tampered(replaced("base/train/images.npy", header(f"({10**30},)", "'|V0'"))),
        Refused("not a readable"),
    ),
    Case(
        "header-that-nests",
        tampered(replaced("base/train/images.npy", header("(" * 3000 + ")" * 3000))),
        Refused("not a readable"),
    ),
    Case(
        "header-of-negative-sides",
        tampered(replaced("base/train/images.npy", header("(-1, -40, 16, 3)"))),
        Refused("not a readable"),
    ),
    Case(
        "counts-missing",
        tampered(said(MANIFEST, counts=...)),
        Refused(r"manifest\.json: counts: nothing found; field required"),
    ),
    Case("counts-as-text", tampered(said(MANIFEST, counts={"train": "40"})), Refused("counts.train: '40' found")),
    Case(
        "counts-as-truth-value", tampered(said(MANIFEST, counts={"train": True})), Refused("counts.train: True found")
    ),
    Case("counts-below-zero", tampered(said(MANIFEST, counts={"train": -40})), Refused("counts.train: -40 found")),
    Case(
        "classes-as-numbers",
        tampered(said(MANIFEST, classes=list(range(10)))),
        Refused("classes.'0': 0 found|classes.0: 0 found"),
    ),
    Case("no-classes", tampered(said(MANIFEST, classes=[])), Refused("classes: ")),
    Case("shape-of-two-sides", tampered(said(MANIFEST, shape=[16, 16])), Refused("shape: ")),
    Case(
        "files-as-list",
        tampered(within(MANIFEST, lambda about: about.update(files=sorted(about["files"])))),
        Refused("files: .*allowed: SHA-256 by name"),
    ),
    Case(
        "digest-as-number",
        tampered(listed_outside("x"), within(MANIFEST, set_in("files", x=1))),
        Refused("'x': 1 found, allowed: a SHA-256"),
    ),
    Case("path-upwards", tampered(listed_outside("../../etc/passwd")), Refused("allowed: ")),
    Case("path-absolute", tampered(listed_outside("/etc/passwd")), Refused("allowed: paths within the artefact")),
    Case("path-with-backslashes", tampered(listed_outside("train\\..\\x")), Refused("allowed: ")),
    Case("path-with-nul", tampered(listed_outside("train/\0x")), Refused("allowed: ")),
    Case(
        "link-out-of-the-artefact",
        tampered(linked("base/train/labels.npy", outside)),
        Refused(r"labels\.npy: a link that leads out of the artefact"),
    ),
    Case(
        "link-to-itself",
        tampered(linked("base/train/labels.npy", lambda f: f / "base/train/labels.npy")),
        Refused(r"labels\.npy: "),
    ),
    Case(
        "manifest-linked-outside",
        tampered(linked(MANIFEST, lambda _: "/etc/hostname")),
        Refused(r"manifest\.json: a link"),
    ),
    Case("pipe-for-images", tampered(piped("base/train/images.npy")), Refused(r"images\.npy: a pipe or device found")),
    Case("pipe-for-manifest", tampered(piped(MANIFEST)), Refused(r"manifest\.json: a pipe or device found")),
    Case(
        "names-missing",
        tampered(raw("base/train/sources.txt", lambda data: data[: len(data) // 2])),
        Refused(r"sources\.txt: \d+ names found, allowed: one for each of 40"),
    ),
    Case(
        "names-not-utf-8",
        tampered(raw("base/train/sources.txt", lambda data: b"\xff" + data)),
        Accepted(lambda value: value[2][0].startswith("\\xff")),
    ),
]
JSON = [
    Case(
        "nested-100000-deep",
        tampered(replaced(SCORES, b'{"a":' + b"[" * 100_000)),
        Refused(r"scores\.json: not readable as JSON"),
    ),
    Case(
        "key-twice", tampered(raw(SCORES, doubled(b"count")), sealed=False), Refused("the key 'count' is there twice")
    ),
    Case("not-a-number", tampered(replaced(SCORES, b'{"count": NaN}')), Refused("NaN found, allowed: finite numbers")),
    Case(
        "number-past-all",
        tampered(replaced(SCORES, b'{"count": 1e999}')),
        Refused("1e999 found, allowed: finite numbers"),
    ),
    Case(
        "number-of-5000-digits",
        tampered(replaced(SCORES, b'{"count": ' + b"9" * 5000 + b"}")),
        Refused(r"scores\.json: not readable as JSON"),
    ),
    Case(
        "half-a-character",
        tampered(replaced(SCORES, b'{"caption": "\\ud800"}')),
        Refused(r"scores\.json: not readable as JSON"),
    ),
    Case(
        "latin-1",
        tampered(replaced(SCORES, '{"caption": "é"}'.encode("latin-1"))),
        Refused(r"scores\.json: not readable as JSON"),
    ),
    Case("a-list", tampered(replaced(SCORES, b"[]")), Refused("a list found, allowed: a JSON object")),
    Case("made-from-a-list", tampered(said(SCORES, made_from=["x"])), Refused("made_from: ")),
    Case("empty", tampered(replaced(SCORES, b"")), Refused(r"scores\.json: not readable as JSON")),
]
RUN = [
    Case("intact", tampered(), Accepted(valid(read_run))),
    Case(
        "overlay-rows-twice",
        tampered(array("poisoned/index.npy", lambda a: np.r_[a[:1], a[:-1]])),
        Refused(r"index\.npy: allowed: rows 0 to 39 in rising order"),
    ),
    Case(
        "overlay-rows-out-of-order",
        tampered(array("poisoned/index.npy", lambda a: a[::-1].copy())),
        Refused("rising order"),
    ),
    Case("overlay-rows-past-the-end", tampered(array("poisoned/index.npy", lambda a: a + 30)), Refused("rows 0 to 39")),
    Case(
        "overlay-rows-before-the-start",
        tampered(array("poisoned/index.npy", lambda a: a - 40)),
        Refused("rows 0 to 39"),
    ),
    Case(
        "overlay-images-to-broadcast",
        tampered(array("poisoned/images.npy", lambda a: a[:, :1, :1])),
        Refused(r"images\.npy: images of shape"),
    ),
    Case(
        "overlay-one-image-for-all",
        tampered(array("poisoned/images.npy", lambda a: a[:1])),
        Refused(r"images\.npy: images of shape \(1,"),
    ),
    Case("overlay-of-another-split", tampered(said(OVERLAY, split="test")), Refused("made for the test split")),
    Case("overlay-base-as-list", tampered(said(OVERLAY, base=["x"])), Refused("base: ")),
    Case(
        "truth-of-another-run",
        tampered(older),
        Refused("truth: not the samples and labels of the present poisoned set"),
    ),
    Case(
        "truth-mask-of-numbers",
        tampered(array("truth/mask.npy", lambda a: a.astype(np.int8))),
        Refused(r"mask\.npy: int8 of shape"),
    ),
    Case(
        "truth-mask-shorter",
        tampered(array("truth/mask.npy", lambda a: a[:-1])),
        Refused(r"part\.npy: int8 of shape \(40,\) found"),
    ),
    Case(
        "truth-trigger-that-is-not-there",
        tampered(array("truth/part.npy", lambda a: a + np.int8(1))),
        Refused(r"part\.npy: allowed: 0 to 0"),
    ),
    Case(
        "truth-labels-below-zero",
        tampered(array("truth/labels.npy", lambda a: a - 1)),
        Refused(r"labels\.npy: -1 found"),
    ),
    Case(
        "truth-counts-other",
        tampered(said(TRUTH, counts={"samples": 40, "poisoned": 1, "cover": 0})),
        Refused("counts .*the arrays say"),
    ),
    Case(
        "truth-target-that-is-no-class",
        tampered(of_policy(target=10)),
        Refused(r"truth\.json: parts\.0\.policy\.target: 10 given, allowed: 0 to 9"),
    ),
    Case(
        "truth-rate-above-one",
        tampered(of_policy(poison_rate=2.0)),
        Refused(r"parts\.0\.policy\.poison_rate: 2\.0 given"),
    ),
    Case("truth-policy-unknown-key", tampered(of_policy(secret=1)), Refused(r"policy\.secret: unknown key")),
    Case(
        "trigger-named-upwards",
        tampered(
            within("triggers/attacker.json", lambda about: about["triggers"][0].update(name="../training/blended"))
        ),
        Refused(r"attacker\.json: triggers\.'?0'?\.name: "),
    ),
    Case(
        "triggered-named-upwards",
        tampered(said("triggered/triggered.json", triggers=["../poisoned"])),
        Refused(r"triggered\.json: triggers\.'?0'?: "),
    ),
    Case(
        "trigger-of-an-unknown-attack",
        tampered(said(TRIGGER, attack="os.system")),
        Refused(r"trigger\.json: attack: 'os\.system' given"),
    ),
    Case(
        "trigger-setting-unknown",
        tampered(within(TRIGGER, set_in("settings", extra=1))),
        Refused(r"trigger\.json: extra: no setting of a Mix"),
    ),
    Case(
        "trigger-setting-of-another-type",
        tampered(within(TRIGGER, set_in("settings", test_factor="1"))),
        Refused(r"trigger\.json: test_factor: '1' given"),
    ),
    Case(
        "trigger-rounding-unknown",
        tampered(within(TRIGGER, set_in("settings", rounding="up"))),
        Refused(r"trigger\.json: rounding: 'up' given"),
    ),
    Case(
        "trigger-pattern-not-finite",
        tampered(archive("triggers/blended/trigger.npz", lambda a: a | {"pattern": a["pattern"] * np.float32(np.nan)})),
        Refused("pattern: values that are not finite"),
    ),
    Case(
        "trigger-pattern-of-64-bits",
        tampered(archive("triggers/blended/trigger.npz", lambda a: a | {"pattern": a["pattern"].astype(float)})),
        Refused("pattern: an array of float64 given, allowed: float32"),
    ),
    Case(
        "trigger-pattern-to-broadcast",
        tampered(archive("triggers/blended/trigger.npz", lambda a: a | {"pattern": a["pattern"][:, :1, :1]})),
        Refused(r"pattern: \[3, 1, 1\] given, allowed for these images: \[3, 16, 16\]"),
    ),
    Case(
        "trigger-pattern-missing",
        tampered(archive("triggers/blended/trigger.npz", lambda a: {"opacity": a["opacity"]})),
        Refused("pattern: nothing given"),
    ),
    Case(
        "trigger-packed",
        tampered(archive("triggers/blended/trigger.npz", lambda a: a, packed=True)),
        Refused(r"trigger\.npz: not a readable \.npz archive"),
    ),
    Case(
        "trigger-bomb",
        tampered(raw("triggers/blended/trigger.npz", bomb)),
        Refused(r"trigger\.npz: not a readable \.npz archive"),
    ),
    Case(
        "hand-of-another-run",
        tampered(said("training/attacker.json", made_from={"poisoned": "0" * 64}), sealed=False),
        Refused(r"attacker\.json: made from another poisoned"),
    ),
    Case(
        "hand-without-triggers",
        tampered(within("training/attacker.json", lambda about: about.pop("parts"))),
        Refused("parts: nothing found"),
    ),
]
ROWS = [
    Case("features-intact", tampered(), Accepted(valid(read_rows))),
    Case(
        "features-not-finite",
        tampered(array("features/penultimate.npy", lambda a: a * np.float32(np.inf))),
        Refused(r"penultimate\.npy: values that are not finite"),
    ),
    Case(
        "features-fewer",
        tampered(array("features/logits.npy", lambda a: a[:10])),
        Refused(r"logits\.npy: float32 of shape \(10, 4\)"),
    ),
    Case(
        "features-of-64-bits",
        tampered(array("features/logits.npy", lambda a: a.astype(float))),
        Refused("float64 of shape"),
    ),
]
SCORED = [
    Case("scores-intact", tampered(), Accepted(valid(read_scores))),
    Case(
        "scores-not-finite",
        tampered(array("scores/scores.npy", lambda a: a * np.float32(np.nan))),
        Refused(r"scores\.npy: 40 scores are not finite"),
    ),
    Case(
        "flags-of-fewer-samples",
        tampered(array("scores/flagged.npy", lambda a: a[:-1])),
        Refused(r"flagged\.npy: bool of shape \(39,\)"),
    ),
    Case(
        "flags-that-are-numbers",
        tampered(array("scores/flagged.npy", lambda a: a.astype(np.int64))),
        Refused(r"flagged\.npy: int64 of shape \(40,\)"),
    ),
    Case(
        "scores-of-another-detector", tampered(said(SCORES, method="ss")), Refused("method: 'ss' found, allowed: 'cd'")
    ),
    Case(
        "scores-of-fewer-samples",
        tampered(said(SCORES, count=39), array("scores/scores.npy", lambda a: a[:-1])),
        Refused("count: '39' found, allowed: 40"),
    ),
    Case(
        "scores-in-two-dimensions",
        tampered(array("scores/scores.npy", lambda a: a[None])),
        Refused(r"scores\.npy: float32 of shape \(1, 40\)"),
    ),
    Case("passes-below-zero", tampered(said(SCORES, forward_passes=-1)), Refused("forward_passes: -1 found")),
    Case("assumption-of-one-part", tampered(said(SCORES, assumption=["x"])), Refused("assumption")),
    Case(
        "masks-above-one",
        tampered(archive("scores/aux.npz", lambda a: a | {"masks": a["masks"] + np.float16(1)})),
        Refused(r"aux\.npz: masks: allowed"),
    ),
    Case(
        "masks-of-samples-that-are-not-there",
        tampered(archive("scores/aux.npz", lambda a: a | {"index": a["index"] + 39})),
        Refused(r"aux\.npz: index: allowed: samples 0 to 39"),
    ),
    Case(
        "masks-alone",
        tampered(archive("scores/aux.npz", lambda a: {"masks": a["masks"]})),
        Refused("allowed: none, or index and masks"),
    ),
    Case(
        "sample-intact",
        tampered(sampled(np.arange(0, 40, 2)), archive("scores/aux.npz", lambda a: a | {"index": a["index"] * 38})),
        Accepted(lambda value: len(value[0]) == 20),
    ),
    Case(
        "sample-out-of-order",
        tampered(sampled([0, 1, 3, 2])),
        Refused(r"index\.npy: allowed: samples 0 to 39 in rising order, each once"),
    ),
    Case(
        "sample-twice", tampered(sampled([0, 1, 1])), Refused(r"index\.npy: allowed: samples 0 to 39 in rising order")
    ),
    Case("sample-past-the-end", tampered(sampled([0, 1, 40])), Refused(r"index\.npy: allowed: samples 0 to 39 in")),
    Case("sample-before-the-start", tampered(sampled([-1, 0, 1])), Refused(r"index\.npy: allowed: samples 0 to 39 in")),
    Case(
        "sample-as-real-numbers",
        tampered(sampled([0.0, 1.0])),
        Refused(r"index\.npy: float64 of shape \(2,\) found, allowed: int64 \[2\]"),
    ),
    Case(
        "sample-of-more-scores",
        tampered(sampled([0, 1], scores=3)),
        Refused(r"scores\.npy: float32 of shape \(3,\) found, allowed: float32 \[2\]"),
    ),
    Case("sample-of-none", tampered(sampled([])), Refused("scored: 0 found")),
    Case("sample-without-its-numbers", tampered(said(SCORES, scored=40)), Refused(r"index\.npy: not listed")),
    Case(
        "masks-of-samples-that-were-not-scored",
        tampered(sampled([0, 2, 4])),
        Refused(r"aux\.npz: index: allowed: samples that were scored"),
    ),
    Case(
        "a-kill-between-two-names",
        tampered(lambda folder: (folder / "scores").rename(folder / ".scores.0123abcd-1-0.replaced")),
        Accepted(valid(read_scores)),
    ),
]
JUDGED = [
    Case("verdict-intact", tampered(), Accepted(valid(read_verdict))),
    Case(
        "verdict-not-finite",
        tampered(array("verdict/anomaly.npy", lambda a: a / np.float32(0))),
        Refused(r"anomaly\.npy: 2 indices are not finite"),
    ),
    Case(
        "verdict-of-another-inspector",
        tampered(said(VERDICT, method="neural_cleanse")),
        Refused("method: 'neural_cleanse' found, allowed: 'mm_bd'"),
    ),
    Case("verdict-of-more-classes", tampered(said(VERDICT, classes=3)), Refused("classes: '3' found, allowed: 2")),
    Case("verdict-of-no-class", tampered(said(VERDICT, classes=0)), Refused("classes: 0 found")),
    Case("verdict-of-another-format", tampered(said(VERDICT, format="x")), Refused("format 'x' found")),
    Case("verdict-of-no-cost", tampered(said(VERDICT, forward_passes=-1)), Refused("forward_passes: -1 found")),
    Case(
        "verdict-of-fewer-indices",
        tampered(array("verdict/anomaly.npy", lambda a: a[:1])),
        Refused(r"anomaly\.npy: float32 of shape \(1,\) found, allowed: float32 \[2\]"),
    ),
    Case(
        "verdict-flags-that-are-numbers",
        tampered(array("verdict/flagged.npy", lambda a: a.astype(np.uint8))),
        Refused(r"flagged\.npy: uint8 of shape \(2,\)"),
    ),
    Case(
        "patches-below-zero",
        tampered(archive("verdict/aux.npz", lambda a: a | {"masks": -a["masks"]})),
        Refused(r"aux\.npz: masks: allowed: real numbers of 0 to 1"),
    ),
    Case(
        "patches-of-nothing",
        tampered(archive("verdict/aux.npz", lambda a: a | {"masks": a["masks"] * np.float16(np.nan)})),
        Refused(r"aux\.npz: masks: allowed: real numbers of 0 to 1"),
    ),
    Case(
        "patches-of-real-numbers",
        tampered(archive("verdict/aux.npz", lambda a: a | {"patterns": a["patterns"].astype(np.float32)})),
        Refused(r"aux\.npz: float32 of shape \(2, 3, 16, 16\) found, allowed: uint8"),
    ),
    Case(
        "patches-of-another-size",
        tampered(archive("verdict/aux.npz", lambda a: a | {"patterns": a["patterns"][..., :8]})),
        Refused(r"aux\.npz: uint8 of shape \(2, 3, 16, 8\) found, allowed: uint8 \[2, channels, 16, 16\]"),
    ),
    Case(
        "patches-of-one-class",
        tampered(archive("verdict/aux.npz", lambda a: {name: values[:1] for name, values in a.items()})),
        Refused(r"aux\.npz: float16 of shape \(1, 16, 16\) found, allowed: \[2, height, width\]"),
    ),
    Case(
        "patches-without-masks",
        tampered(archive("verdict/aux.npz", lambda a: {"patterns": a["patterns"]})),
        Refused("allowed: none, or masks and patterns"),
    ),
    Case("no-patches", tampered(archive("verdict/aux.npz", lambda _: {})), Accepted(lambda value: value[2] == [])),
]
TESTED_LINE = {"t": [0.0, 0.5, 1.0], "acc": [0.9, 0.8, 0.7], "asr": [0.0, 0.5, 1.0]}


def on_the_line(**values: Any) -> Any:
    return tampered(said(STRESS, line=TESTED_LINE | values))


STRESSED = [
    Case("stress-intact", tampered(), Accepted(valid(read_stress))),
    Case("stress-without-asr", on_the_line(asr=[]), Accepted(lambda value: value[3] == [])),
    Case("stress-of-another-model", tampered(said(STRESS, method="ft")), Refused("method: 'ft' found, allowed: 'fst'")),
    Case("stress-of-another-format", tampered(said(STRESS, format="x")), Refused("format 'x' found")),
    Case("stress-gone", tampered(lambda folder: (folder / STRESS).unlink()), Refused(r"stress\.json: no such file")),
    Case("stress-without-a-line", tampered(said(STRESS, line=...)), Refused("line: nothing found")),
    Case("stress-line-text", tampered(said(STRESS, line="0 to 1")), Refused("line: '0 to 1' found")),
    Case(
        "stress-percent",
        tampered(said(STRESS, figures={"retuned_asr": 50.0})),
        Refused("figures.retuned_asr: 50.0 found"),
    ),
    Case(
        "stress-text", tampered(said(STRESS, figures={"retuned_asr": "1"})), Refused("figures.retuned_asr: '1' found")
    ),
    Case(
        "stress-flag", tampered(said(STRESS, figures={"retuned_asr": True})), Refused("figures.retuned_asr: True found")
    ),
    Case(
        "stress-of-another-figure",
        tampered(said(STRESS, figures={"<b>x</b>": 0.5})),
        Refused("figures.*input should be 'retuned_acc'"),
    ),
    Case("stress-nan", tampered(said(STRESS, figures={"retuned_asr": float("nan")})), Refused("NaN found")),
    Case("stress-line-nan", on_the_line(acc=[0.9, float("nan"), 0.7]), Refused("NaN found")),
    Case("stress-line-percent", on_the_line(asr=[0.0, 50.0, 100.0]), Refused("line.asr.*50.0 found")),
    Case(
        "stress-line-backwards",
        on_the_line(t=[1.0, 0.5, 0.0]),
        Refused("line.t: allowed: places that rise from 0 to 1"),
    ),
    Case("stress-line-cut-off", on_the_line(t=[0.0, 0.5, 0.9]), Refused("line.t: allowed: places that rise")),
    Case("stress-line-twice", on_the_line(t=[0.0, 0.0, 1.0]), Refused("line.t: allowed: places that rise")),
    Case("stress-line-of-a-point", on_the_line(t=[0.0], acc=[0.9]), Refused("line.t: ")),
    Case(
        "stress-line-fewer-acc",
        on_the_line(acc=[0.9, 0.8]),
        Refused("line.acc: 2 figures found, allowed: one for each of 3"),
    ),
    Case(
        "stress-line-fewer-asr",
        on_the_line(asr=[0.9]),
        Refused("line.asr: 1 figures found, allowed: one for each of 3"),
    ),
    Case(
        "stress-line-of-many-points",
        on_the_line(t=np.linspace(0, 1, 10_001).tolist()),
        Refused("line.t: .*at most 10000 items"),
    ),
]
DOORS = {read_base: BASE, read_any: JSON, read_run: RUN, read_rows: ROWS, read_scores: SCORED, read_verdict: JUDGED}
DOORS |= {read_stress: STRESSED}


@pytest.mark.parametrize(
    ("door", "case"),
    [pytest.param(door, case, id=f"{door.__name__}-{case}") for door, cases in DOORS.items() for case in cases],
)
def test_case(door: Callable[[Path], Any], case: Case, tmp_path: Path) -> None:
    knock(door, case, tmp_path)
