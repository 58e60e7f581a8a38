"""Every attack at several poison rates: ACC, ASR, RA and visibility, beside BackdoorBench's published ASR.

    python suites/attack_table.py run digits                  # what is missing; `--part 1/2` and `--part 2/2` side by side
    python suites/attack_table.py run cifar10 --data PATH     # folder or archive of images; without it: torchvision's files
    python suites/attack_table.py table                       # from the record: reports/attacks/index.md
    python suites/attack_table.py sheet digits                # reports/attacks/digits.png: clean, stamped, difference x10

Only poisoning, training and grading are run, with the pipeline's own code; rows and settings are in attack_rows.py. A run
that is on record with the same settings is not made again, and expensive assets are shared by the rates.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import yaml

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT / "stages"))

from attack_rows import DATA, MODEL, PUBLISHED, RATES, ROWS, SOURCE, SURROGATE, TRAIN, Row  # noqa: E402

import poison  # noqa: E402
from common import load_params  # noqa: E402
from evaluate import attack_metrics, model_metrics  # noqa: E402
from unpoison import models  # noqa: E402
from unpoison.attacks import ATTACKS  # noqa: E402
from unpoison.compute.device import machine  # noqa: E402
from unpoison.core.errors import UserError  # noqa: E402
from unpoison.core.files import new_file, sha256_json  # noqa: E402
from unpoison.core.seeding import derive  # noqa: E402
from unpoison.crafting.assets import AssetStore  # noqa: E402
from unpoison.crafting.craft import poison as poison_set  # noqa: E402
from unpoison.data.imageset import ImageSet, Overlay  # noqa: E402
from unpoison.data.store import open_split  # noqa: E402
from unpoison.poisoning.trigger import stamp  # noqa: E402
from unpoison.poisoning.truth import Truth  # noqa: E402
from unpoison.reporting import figures  # noqa: E402
from unpoison.training.loop import fit  # noqa: E402
from unpoison.training.recipes import recipe_named  # noqa: E402

SCRATCH = ROOT / ".unpoison" / "attack_table"
REPORTS = ROOT / "reports" / "attacks"
KEYS = ["data", "row", "rate", "seed"]
FIGURES = [
    "poisoned",
    "cover",
    "tested",
    "acc",
    "acc_without_target",
    "asr",
    "ra",
    "psnr",
    "ssim",
    "linf",
    "l2",
    "changed",
]


@dataclass(frozen=True)
class Job:
    """One line of the record."""

    data: str
    name: str
    row: Row
    rate: float
    seed: int

    @property
    def params(self) -> dict[str, Any]:
        """The parameters as the poison stage would read them."""
        params = dict(load_params(ROOT / "params.yaml"))
        attack = {**params["attack"], "name": self.row.attack, "rate_of": "all", "surrogate": SURROGATE}
        attack |= {**self.row.policy, "poison_rate": self.rate}
        attack[self.row.attack] = {**(attack.get(self.row.attack) or {}), **self.row.own}
        return {**params, "attack": attack, "seed": self.seed}

    @property
    def settings(self) -> str:
        """A digest of all that the line depends on but the code and the source of the data."""
        intents = [asdict(intent) for intent in poison.settings(self.params).intents]
        trained = {**TRAIN, **self.row.train}
        return sha256_json([intents, DATA[self.data], MODEL, trained, SURROGATE, self.seed])[:12]


def jobs(data: str, seeds: list[int], only: list[str]) -> Iterator[Job]:
    """The lines of a data set, the highest rate of every attack first."""
    for place in range(len(RATES)):
        for name in only or ROWS:
            for rate in ROWS[name].rates[place : place + 1]:
                for seed in seeds:
                    yield Job(data, name, ROWS[name], rate, seed)


def prepared(name: str, source: str | None) -> Path:
    """The base data set, made by the pipeline's own stage in a folder of its own."""
    folder = SCRATCH / f"{name}-{sha256_json([DATA[name], source])[:8]}"
    if not (folder / "data" / "base" / "manifest.json").is_file():
        data = {**load_params(ROOT / "params.yaml")["data"], **DATA[name]}
        data["path"] = str((ROOT / data["path"]).resolve())
        if source is not None:
            data |= {"name": "folder", "path": str(Path(source).resolve())}
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "params.yaml").write_text(yaml.safe_dump({"data": data}), encoding="utf-8")
        done = subprocess.run([sys.executable, str(ROOT / "stages" / "prepare.py")], cwd=folder)
        if done.returncode:
            raise UserError(f"{name}: the data set could not be prepared, see above")
    return folder / "data" / "base"


def make(job: Job, base: Path, assets: AssetStore) -> dict[str, Any]:
    """Poison, train and grade once."""
    train, test = open_split(base, "train"), open_split(base, "test")
    start = time.perf_counter()
    truth = attack_of(job, train, assets)
    made = time.perf_counter()
    model = models.build(
        **MODEL,  # type: ignore[arg-type]
        num_classes=len(train.classes),
        image_size=train.image_size,
        channels=train.channels,
        seed=derive(job.seed, "backdoored/weights"),
    )
    recipe = recipe_named({**TRAIN, **job.row.train}, where="TRAIN")
    fit(model, received(truth, train), recipe, seed=job.seed, what="backdoored")
    figures_ = {**attack_metrics(test, truth), **model_metrics(model, test, truth)}
    triggers = list(figures_.pop("trigger").values())
    # Of several triggers the mean.
    visible = {key: np.mean([each[key] for each in triggers]) for key in triggers[0] if all(key in t for t in triggers)}
    line: dict[str, Any] = {"data": job.data, "row": job.name, "rate": job.rate, "seed": job.seed}
    line |= {name: round(float(value), 6) for name, value in {**figures_, **visible}.items() if name in FIGURES}
    line |= {"make_seconds": round(made - start, 1), "seconds": round(time.perf_counter() - start, 1)}
    return line | {"settings": job.settings, "machine": machine()}


def attack_of(job: Job, train: ImageSet, assets: AssetStore) -> Truth:
    chosen = poison.settings(job.params)
    return poison_set(chosen.name, chosen.intents, chosen.scene(train, job.seed, assets), where="attack")


def received(truth: Truth, train: ImageSet) -> ImageSet:
    """The training set as the victim gets it, in memory."""
    index, labels = np.flatnonzero(truth.part >= 0), truth.labels_given(len(train.classes))
    overlay = Overlay(index, truth.stamped(train, index), labels[index])
    return ImageSet(train.base, labels, train.classes, "", overlay)


def run(arguments: argparse.Namespace) -> None:
    """Make the lines that are missing. Parts write records of their own, which `table` puts together."""
    part, _, parts = arguments.part.partition("/")
    if not (part.isdecimal() and parts.isdecimal() and 1 <= int(part) <= int(parts)):
        raise UserError(f"--part: {arguments.part!r} given, allowed: 1/2, for the first of two")
    base, assets = prepared(arguments.data_set, arguments.data), AssetStore(SCRATCH / "assets")
    source = "" if arguments.data is None else Path(arguments.data).name
    lines = record()
    known = set(zip(lines["settings"], lines["source"], strict=True))
    mine = (arguments.rows or list(ROWS))[int(part) - 1 :: int(parts)]
    for job in jobs(arguments.data_set, arguments.seeds, mine):
        if (job.settings, source) in known:
            continue
        line = {**make(job, base, assets), "source": source}
        path = SCRATCH / "runs" / f"{job.settings}-{sha256_json(source)[:4]}.csv"
        with new_file(path) as staging:
            pd.DataFrame([line]).to_csv(staging, index=False)
        print({key: line.get(key) for key in (*KEYS, "poisoned", "acc", "asr", "ra", "psnr", "seconds")}, flush=True)


def record() -> pd.DataFrame:
    """The committed lines and those made here, which take their place; those of other settings are left out."""
    paths = [REPORTS / "runs.csv", *sorted((SCRATCH / "runs").glob("*.csv"))]
    tables = [
        pd.read_csv(path, dtype={"settings": str, "source": str}, keep_default_na=False, na_values=[""])
        for path in paths
        if path.is_file()
    ]
    if not tables:
        return pd.DataFrame(columns=[*KEYS, *FIGURES, "settings", "source"])
    lines = pd.concat(tables).drop_duplicates([*KEYS, "settings", "source"], keep="last")
    lines["source"] = lines["source"].fillna("")
    now = {(job.data, job.name, job.rate, job.seed): job.settings for job in _all_jobs(sorted(set(lines["seed"])))}
    current = [now.get(tuple(line[:-1])) == line[-1] for line in lines[[*KEYS, "settings"]].itertuples(index=False)]
    return lines[current]


def _all_jobs(seeds: list[int]) -> Iterator[Job]:
    for data in DATA:
        yield from jobs(data, seeds, [])


def table(_: argparse.Namespace) -> None:
    """Write the record and the page."""
    lines = record()
    order = {name: number for number, name in enumerate(ROWS)}
    lines = lines.sort_values(KEYS, key=lambda column: column.map(order) if column.name == "row" else column)
    REPORTS.mkdir(parents=True, exist_ok=True)
    with new_file(REPORTS / "runs.csv") as staging:
        lines.to_csv(staging, index=False)
    with new_file(REPORTS / "index.md") as staging:
        staging.write_text(page(lines), encoding="utf-8")
    print(f"attack table: {len(lines)} runs; wrote {REPORTS / 'runs.csv'}, {REPORTS / 'index.md'}")


def page(lines: pd.DataFrame) -> str:
    """The tables as Markdown, one per data set."""
    text = f"Published ASR: {SOURCE}; its TrojanNN wraps around, ours is clipped. What the table says: docs/attacks.md."
    parts = ["# All attacks", text]
    for data in DATA:
        mine = lines[lines["data"] == data]
        parts += [f"## {data}", _about(data, mine)]
        header = [
            "attack",
            "rate",
            "poisoned",
            "cover",
            "ACC",
            "ACC without target",
            "ASR",
            "of images",
            "published ASR",
            "RA",
        ]
        header += ["PSNR, dB", "SSIM", "L∞", "changed pixels", "n"]
        rows = ["| " + " | ".join(header) + " |", "|---|" + "---:|" * (len(header) - 1)]
        for name, row in ROWS.items():
            for rate in row.rates:
                rows.append(_row(name, row, rate, mine[(mine["row"] == name) & (mine["rate"] == rate)]))
        parts.append("\n".join(rows))
    return "\n\n".join(parts) + "\n"


def _about(data: str, lines: pd.DataFrame) -> str:
    network = " ".join(str(value) for value in MODEL.values())
    text = f"{_inline(DATA[data])}; {network}; training {_inline(TRAIN)}."
    if not len(lines):
        return f"{text} Not run: `python suites/attack_table.py run {data}`."
    seconds = lines["seconds"].sum() / 60
    sources = (
        ", ".join(sorted({source or "torchvision's files" for source in lines["source"]})) if data != "digits" else ""
    )
    text += f" Images: {sources}." if sources else ""
    return f"{text} {len(lines)} runs, {seconds:.0f} minutes in all, on {', '.join(sorted(set(lines['machine'])))}."


def _inline(block: dict[str, Any]) -> str:
    return ", ".join(f"{key} {value}" for key, value in block.items())


def _row(name: str, row: Row, rate: float, lines: pd.DataFrame) -> str:
    known = PUBLISHED.get(row.published, {}).get(rate)
    published = "" if known is None else f"{known:.3f}"
    if not len(lines):
        return f"| {name} | {rate:.0%} |  |  |  |  | not run |  | {published} |  |  |  |  |  | 0 |"

    def cell(key: str, form: str = ".3f") -> str:
        if key not in lines or not lines[key].notna().any():
            return "–"
        values = lines[key].dropna()
        spread = f" ± {values.std():{form}}" if len(values) > 1 else ""
        return f"{values.mean():{form}}{spread}"

    figures_ = [cell("poisoned", ".2%"), cell("cover", ".2%"), cell("acc"), cell("acc_without_target"), cell("asr")]
    figures_ += [
        cell("tested", ".0f"),
        published,
        cell("ra"),
        cell("psnr", ".1f"),
        cell("ssim"),
        cell("linf"),
        cell("changed", ".1%"),
    ]
    return f"| {name} | {rate:.0%} | " + " | ".join([*figures_, str(len(lines))]) + " |"


def sheet(arguments: argparse.Namespace) -> None:
    """A row per trigger: the same images stamped for training and for the test, each with its difference times ten."""
    base, assets = prepared(arguments.data_set, arguments.data), AssetStore(SCRATCH / "assets")
    train = open_split(base, "train")
    # Of the target class, so that clean-label attacks can be shown on them as well.
    keys = np.flatnonzero(train.labels == 0)[: arguments.images]
    clean = train.gather(keys)
    rows = {"clean": _side_by_side(clean, clean, clean)}
    # Rows that differ in the policy or the training only have the same trigger.
    different = {repr((row.attack, row.own)): name for name, row in reversed(ROWS.items())}
    for name in arguments.rows or [name for name in ROWS if name in different.values()]:
        job = Job(arguments.data_set, name, ROWS[name], ROWS[name].rates[0], 0)
        chosen = poison.settings(job.params)
        for number, wanted in enumerate(chosen.intents):
            scene = replace(chosen.scene(train, 0, assets), target=wanted.policy.target)
            trigger = ATTACKS[wanted.attack].make(scene, **wanted.arguments).for_samples(scene, keys)
            label = name if len(chosen.intents) == 1 else f"{name}: {number}_{wanted.attack}"
            stamped = (stamp(trigger, clean, keys, train=train_) for train_ in (True, False))
            rows[label] = _side_by_side(clean, *stamped)
    titles = [f"{kind}{end}" for kind in ("training", "test") for _ in keys for end in ("", " ×10")]
    path = REPORTS / f"{arguments.data_set}.png"
    with new_file(path) as staging:
        staging.write_bytes(figures.contact_sheet(rows, titles))
    print(f"wrote {path}")


def _side_by_side(clean: Any, trained: Any, tested: Any) -> Any:
    """Each image with its difference: uint8 [4 n, h, w, c]."""
    columns = []
    for stamped in (trained, tested):
        difference = (np.abs(stamped.astype(int) - clean) * 10).clip(0, 255).astype(np.uint8)
        columns.append(np.stack([stamped, difference], 1).reshape(-1, *clean.shape[1:]))
    return np.concatenate(columns)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    commands = parser.add_subparsers(required=True)
    for name, function in (("run", run), ("sheet", sheet)):
        command = commands.add_parser(name)
        command.set_defaults(function=function)
        command.add_argument("data_set", choices=DATA)
        command.add_argument("--data", help="a folder or archive of images in the place of torchvision's files")
        command.add_argument("--rows", nargs="+", default=[], choices=ROWS, metavar="ROW", help="only these")
        command.add_argument("--seeds", nargs="+", type=int, default=[0])
        command.add_argument("--part", default="1/1", help="of the attacks: 1/2 and 2/2 side by side")
        command.add_argument("--images", type=int, default=3)
    commands.add_parser("table").set_defaults(function=table)
    arguments = parser.parse_args()
    try:
        arguments.function(arguments)
    except UserError as error:
        sys.exit(f"error: {error}")


if __name__ == "__main__":
    main()
