"""Seconds, bytes and memory per stage at growing numbers of images: is everything linear, does memory stay small?

    python bench/large.py                  # 10,000, 100,000 and 1,000,000 images of 64 px; about an hour on two cores
    python bench/large.py 10000 100000     # two sizes

All stages run up to 100,000 images, past that prepare, poison, train_backdoored, extract and the detectors that score its features.

A tar of JPEG files is made, then the stage scripts run one by one as a user without DVC would run them. Each is watched
from outside: seconds, peak resident memory, and a curve of it. What the framework needs by itself is measured the same
way, by a process that imports what the stages import and takes one training step on random images. The network is small,
because the bench asks about the data path: `timm:test_vit`, 0.3 M parameters.

Writes bench/results/large.csv, large_memory.csv and large_memory.png.
"""

from __future__ import annotations

import argparse
import io
import os
import subprocess
import sys
import tarfile
import tempfile
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml
from matplotlib.figure import Figure
from PIL import Image

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "bench" / "results"
SIDE, CLASSES, TEST = 64, 10, 2000
ALL_UP_TO = 100_000
NETWORK = "timm:test_vit"
STAGES = [["prepare"], ["poison"], ["train_backdoored"], ["extract"], ["detect", "ss"], ["detect", "ac"]]
OTHERS = [["train_prior"], ["generate_variations"], ["distill_student"], ["purify", "fst"], ["detect", "cd"]]
OTHERS += [["detect", "strip"], ["stamp_test"], ["evaluate"], ["report"]]
OUTPUTS = {
    "prepare": "data/base",
    "poison": "data/poisoned",
    "train_backdoored": "reports/training/losses",
    "extract": "data/features",
    "detect ss": "data/scores/ss",
    "detect ac": "data/scores/ac",
    "detect cd": "data/scores/cd",
    "detect strip": "data/scores/strip",
    "generate_variations": "data/variations",
    "report": "reports",
}
FRAMEWORK = f"""
import numpy as np
from unpoison import attacks, detection, models, sources
from unpoison.data.imageset import ImageSet
from unpoison.training.loop import fit
from unpoison.training.recipe import Recipe
data = ImageSet(np.zeros((256, {SIDE}, {SIDE}, 3), np.uint8), np.arange(256) % 10, tuple("0123456789"))
model = models.build({NETWORK!r}, num_classes=10, image_size=({SIDE}, {SIDE}))
fit(model, data, Recipe(epochs=1, batch_size=256), seed=0, what="framework")
"""


def make_archive(path: Path, count: int) -> None:
    """`count` training and `TEST` test images: a colour and a bright quarter by class, and noise; JPEG, quality 85."""
    rng = np.random.default_rng(0)
    with tarfile.open(path, "w") as tar:
        for part, total in (("train", count), ("test", TEST)):
            for i in range(total):
                label = i % CLASSES
                image = rng.integers(0, 120, (8, 8, 3), dtype=np.uint8)
                image[:, :, label % 3] += 60
                image[(label % 4) * 2 : (label % 4) * 2 + 2] += 60
                buffer = io.BytesIO()
                Image.fromarray(image).resize((SIDE, SIDE), Image.Resampling.BILINEAR).save(buffer, "JPEG", quality=85)
                info = tarfile.TarInfo(f"{part}/{label}/{i:07d}.jpg")
                info.size = buffer.tell()
                buffer.seek(0)
                tar.addfile(info, buffer)


def write_params(archive: Path, folder: Path) -> None:
    """The repository's parameters with changes, in `folder`."""
    files = [
        "params.yaml",
        "params/attacks.yaml",
        "params/detectors.yaml",
        "params/purifiers.yaml",
        "params/robust.yaml",
        "params/variations.yaml",
    ]
    contents: dict[str, Any] = {name: yaml.safe_load((ROOT / name).read_text(encoding="utf-8")) for name in files}
    given = contents["params.yaml"]
    given["data"] |= {"name": "folder", "path": str(archive), "reserve": 100, "public": 500}
    given["model"] = {"name": NETWORK}
    given["train"] |= {"epochs": 1, "batch_size": 256, "lr": 0.01}
    given["distill"]["train"] |= {"epochs": 1, "batch_size": 256, "lr": 0.01}
    given["prior"] |= {"steps": 20, "unshuffle": 8, "channels": [8, 8]}
    contents["params/variations.yaml"]["sdedit"] |= {"steps": 2}
    given["purify"] = {"methods": ["fst"]}
    contents["params/purifiers.yaml"]["fst"] |= {"epochs": 1}
    contents["params/detectors.yaml"]["cd"] |= {"steps": 1}
    contents["params/detectors.yaml"]["strip"] |= {"overlays": 2}
    (folder / "params").mkdir()
    for name, values in contents.items():
        (folder / name).write_text(yaml.safe_dump(values, sort_keys=False), encoding="utf-8")


def watched(command: list[str], folder: Path, curve: list[tuple[float, float]]) -> tuple[float, float]:
    """Seconds and peak resident MiB of a command; `curve` gets (seconds, resident MiB) twice a second."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    start = time.perf_counter()
    process = subprocess.Popen(command, cwd=folder, env=environment, stdout=subprocess.DEVNULL)

    ended = threading.Event()

    def sample() -> None:
        while not ended.wait(0.5):
            try:
                status = Path(f"/proc/{process.pid}/status").read_text()
            except FileNotFoundError:
                return
            resident = [line.split()[1] for line in status.splitlines() if line.startswith("VmRSS")]
            if resident:
                curve.append((round(time.perf_counter() - start, 1), int(resident[0]) / 1024))

    thread = threading.Thread(target=sample, daemon=True)
    thread.start()
    _, status, usage = os.wait4(process.pid, 0)
    seconds = time.perf_counter() - start
    process.returncode = os.waitstatus_to_exitcode(status)
    ended.set()
    thread.join()
    if process.returncode:
        sys.exit(f"error: {' '.join(command)} ended with status {process.returncode}")
    return seconds, usage.ru_maxrss / 1024


def size_of(path: Path) -> int:
    return sum(file.stat().st_size for file in path.rglob("*") if file.is_file()) if path.exists() else 0


def run(count: int, stages: list[list[str]], folder: Path) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    rows, curves = [], []
    start = time.perf_counter()
    make_archive(folder / "images.tar", count)
    print(f"{count} images: archive of {size_of(folder) >> 20} MiB in {time.perf_counter() - start:.0f} s", flush=True)
    write_params(folder / "images.tar", folder)
    alone, framework = watched([sys.executable, "-c", FRAMEWORK], folder, [])
    print(f"framework by itself: {alone:.1f} s, {framework:.0f} MiB", flush=True)
    for stage in stages:
        name = " ".join(stage)
        curve: list[tuple[float, float]] = []
        script = str(ROOT / "stages" / f"{stage[0]}.py")
        seconds, peak = watched([sys.executable, script, *stage[1:]], folder, curve)
        row = {"images": count, "stage": name, "seconds": round(seconds, 1)}
        row |= {
            "us_per_image": round(seconds / count * 1e6, 1),
            "peak_mib": round(peak),
            "framework_mib": round(framework),
        }
        row |= {"above_framework_mib": round(peak - framework)}
        row["bytes_per_image"] = round(size_of(folder / OUTPUTS[name]) / count, 1) if name in OUTPUTS else None
        rows.append(row)
        curves += [{"images": count, "stage": name, "seconds": at, "resident_mib": round(mib)} for at, mib in curve]
        print(row, flush=True)
    return rows, curves


def draw(curves: pd.DataFrame, path: Path) -> None:
    """Resident memory over the time of each stage, of the largest run."""
    largest = curves[curves["images"] == curves["images"].max()]
    figure = Figure(figsize=(7, 3.6))
    axes = figure.add_subplot()
    offset = 0.0
    for stage, rows in largest.groupby("stage", sort=False):
        axes.plot(offset + rows["seconds"], rows["resident_mib"], label=stage)
        offset += rows["seconds"].max()
    axes.set(xlabel="seconds, stage after stage", ylabel="resident MiB", ylim=(0, None))
    axes.set_title(f"{largest['images'].iloc[0]:,} images of {SIDE} px", fontsize=10)
    axes.legend(fontsize=8, frameon=False, ncols=2)
    axes.grid(alpha=0.3)
    figure.savefig(path, dpi=130, bbox_inches="tight", metadata={"Software": None})


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("sizes", nargs="*", type=int, default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--folder", type=Path, help="where there is room: 16 GB per million images")
    given = parser.parse_args()
    rows: list[dict[str, Any]] = []
    curves: list[dict[str, Any]] = []
    for size in given.sizes:
        with tempfile.TemporaryDirectory(dir=given.folder) as temporary:
            more = run(size, STAGES + (OTHERS if size <= ALL_UP_TO else []), Path(temporary))
        rows, curves = rows + more[0], curves + more[1]
        RESULTS.mkdir(exist_ok=True)
        pd.DataFrame(rows).to_csv(RESULTS / "large.csv", index=False)
        pd.DataFrame(curves).to_csv(RESULTS / "large_memory.csv", index=False)
        draw(pd.DataFrame(curves), RESULTS / "large_memory.png")
    print(pd.DataFrame(rows).to_string(index=False))
