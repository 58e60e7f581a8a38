"""Readers of suites, of their records, of metrics and of costs."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from hostile.fuzz import Reader
from suite_files import FILE, VARIED
from unpoison.reporting.costs import costs_table
from unpoison.reporting.inputs import read_roc
from unpoison.reporting.metrics import SHARES, read_metrics
from unpoison.reporting.metrics_diff import metrics_table, read_differences
from unpoison.suites.reading import read_suite
from unpoison.suites.record import read_record
from unpoison.suites.suite import METRICS
from unpoison.suites.table import markdown

RECORD = "scale,experiment,seed,settings,commit,data,device,torch,seconds,backdoored.acc\n" + "".join(
    f'small,badnets,{seed},0123abcd,89ab4567,digits,"2 cores, fp32",2.0,1.5,0.{seed}5\n' for seed in range(3)
)
GRADED = {"acc": 0.9, "acc_without_target": 0.8, "asr": 0.7, "ra": 0.2}
METRICS_FILE = {
    "attack": {"poisoned": 0.2, "cover": 0.0, "tested": 3.0, "trigger": {"badnets": {"psnr": 20.0, "ssim": 0.9}}},
    "backdoored": {**GRADED, "collapsed": {"class": 1.0, "share": 1.0}},
    "purified": {"ft": GRADED},
    "detection": {"ss": {"auroc": 0.9, "ap": 0.5, "tpr_at_1fpr": 0.5, "tpr_at_5fpr": 0.5, "precision_at_count": 0.5}},
}


def _suite(data: bytes, folder: Path) -> Any:
    (folder / "tiny.yaml").write_bytes(data)
    suite = read_suite("tiny", folder)
    return suite, markdown(suite, [])


def _is_suite(_: Any, value: Any) -> bool:
    # YAML carries no digest: any suite within its rules may have been meant. Its page holds nothing but its text.
    suite, page = value
    published = [known.figures for about in suite.experiments.values() for known in about.published.values()]
    figures = [figure for known in published for figure in known.values()]
    return all(0 <= figure <= 1 for figure in figures) and _plain(page) and set(suite.tolerances) <= set(METRICS)


def _plain(text: str) -> bool:
    return all(letter.isprintable() or letter in "\n\u200c\u200d" or letter.isspace() for letter in text)


def _record(data: bytes, folder: Path) -> Any:
    (folder / "tiny.runs.csv").write_bytes(data)
    return read_record(folder / "tiny.runs.csv")


def _is_record(seed: Any, runs: Any) -> bool:
    # Another digit is another figure; what may not happen is a run lost or counted twice, or a share that is none.
    keys = {(run.scale, run.data, run.experiment, run.seed) for run in runs}
    shares = [run.metrics["backdoored.acc"] for run in runs if "backdoored.acc" in run.metrics]
    return len(keys) == len(runs) and all(0 <= share <= 1 for share in shares)


def _metrics(data: bytes, folder: Path) -> Any:
    (folder / "metrics.json").write_bytes(data)
    return read_metrics(folder / "metrics.json", 2, attacked=True)


def _is_metrics(_: Any, value: Any) -> bool:
    return all(
        math.isfinite(figure) and (name.rpartition(".")[2] not in SHARES or 0 <= figure <= 1)
        for name, figure in _flat(value)
    )


def _flat(value: Any, name: str = "") -> list[tuple[str, Any]]:
    if isinstance(value, Mapping):
        return [pair for key, item in value.items() for pair in _flat(item, f"{name}.{key}")]
    return [(name, value)]


def _roc(data: bytes, folder: Path) -> Any:
    (folder / "roc.csv").write_bytes(data)
    return read_roc(folder / "roc.csv").to_numpy().tolist()


def _is_roc(_: Any, rows: Any) -> bool:
    return bool(rows) and all(0 <= rate <= 1 for row in rows for rate in row)


def _costs(data: bytes, folder: Path) -> Any:
    (folder / "train.json").write_bytes(data)
    return costs_table(folder)


def _is_costs(_: Any, text: Any) -> bool:
    damaged = text.startswith("left out: ") and text.count("\n") == 1
    return damaged or (text.count("\n") == 4 and "nan" not in text and "inf" not in text)


def _differences(data: bytes, folder: Path) -> Any:
    return metrics_table(read_differences(data))


def _is_differences(_: Any, text: Any) -> bool:
    rows = [line for line in text.split("\n") if line.startswith("|")]
    return _plain(text) and all(row.replace("\\\\", "").replace("\\|", "").count("|") == 5 for row in rows)


def _seed(value: Any) -> list[bytes]:
    return [json.dumps(value).encode()]


READERS = [
    Reader(
        "suite", lambda: [yaml.safe_dump(file, sort_keys=False).encode() for file in (FILE, VARIED)], _suite, _is_suite
    ),
    Reader("suite-record", lambda: [RECORD.encode()], _record, _is_record),
    Reader("metrics", lambda: _seed(METRICS_FILE), _metrics, _is_metrics),
    Reader("roc", lambda: [b"fpr,ss\n0.0,0.0\n0.5,0.25\n1.0,1.0\n"], _roc, _is_roc),
    Reader("costs", lambda: _seed({"seconds": 1.5, "peak_mib": 300}), _costs, _is_costs),
    Reader(
        "metrics-differences",
        lambda: _seed({"m.json": {"acc": {"old": 0.5, "new": 0.25, "diff": -0.25}, "ra": {"old": None, "new": 1}}}),
        _differences,
        _is_differences,
    ),
]
