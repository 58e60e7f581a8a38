"""Small artefacts of a run, and makers of hostile ones: an intact copy, a change, and digests that fit it again."""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from collections.abc import Callable, Mapping
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from small_poison import CLASSES, made, split_of
from unpoison.attacks import restored
from unpoison.core.files import sha256_json
from unpoison.data.features import write_features
from unpoison.data.problems import Problems, save_problems
from unpoison.data.scores import Assumption, Scores, save_scores
from unpoison.data.store import new_base, open_poisoned, open_split, read_sources
from unpoison.data.stress import Line, Stressed, save_stressed
from unpoison.data.verdicts import Verdict, save_verdict
from unpoison.poisoning.attacker import read_training, read_triggers, write_training, write_triggers
from unpoison.poisoning.trigger import stamp
from unpoison.poisoning.triggered import read_triggered, write_triggered
from unpoison.poisoning.truth import read_truth, write_truth

SAMPLES, TESTED = 40, 20
Change = Callable[[Path], object]


@cache
def intact() -> Path:
    """A folder with one artefact of each kind, made once."""
    folder = Path(tempfile.mkdtemp(prefix="unpoison-artefacts-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    sets = {"train": split_of(SAMPLES, 1), "test": split_of(TESTED, 2), "public": split_of(6, 3)}
    labels = {name: labels for name, (_, labels) in sets.items()}
    names = {"train": [f"a b\u2028{number}.png" for number in range(SAMPLES)]}
    with new_base(folder / "base", CLASSES, labels, names, {"name": "small", "source": "here"}) as base:
        for name, (images, _) in sets.items():
            base.write(name, np.arange(len(images)), images)
    train = open_split(folder / "base", "train")
    poisoned = made(train, "blended", poison_first=False, cover_ratio=0.5)
    poisoned.write_overlay(folder / "poisoned", train)
    made_from = {"poisoned": open_poisoned(folder / "base", folder / "poisoned").digest}
    write_training(folder / "training", poisoned, made_from)
    write_triggers(folder / "triggers", poisoned, made_from)
    write_truth(folder / "truth", poisoned.truth, made_from)
    held, _ = read_triggers(folder / "triggers", restored)
    write_triggered(folder / "triggered", open_split(folder / "base", "test"), held, made_from)
    rng = np.random.default_rng(0)
    rows = rng.normal(size=(SAMPLES, 4)).astype(np.float32)
    write_features(folder / "features", [(rows, rows[:, :3])], SAMPLES, made_from)
    aux = {"index": np.arange(2), "masks": rng.uniform(size=(2, 16, 16)).astype(np.float16)}
    assumption, flagged = Assumption("a small part", 0.5), rows[:, 0] > 1
    scores = Scores(rows[:, 0], 3.0, aux, "masks", assumption, flagged=flagged, rule="above 1")
    save_scores(scores, folder / "scores", method="cd", parameters={}, made_from=made_from)
    patches = {"masks": aux["masks"], "patterns": rng.integers(0, 256, (2, 3, 16, 16), dtype=np.uint8)}
    verdict = Verdict(rows[:2, 0], rows[:2, 0] > 1, "above 1", 6.0, "patches", patches)
    save_verdict(verdict, folder / "verdict", method="mm_bd", parameters={}, made_from=made_from)
    problems = Problems(np.array([[0, 7]]), np.array([0.02]), np.array([2]), np.arange(SAMPLES) % 4 - 1, 3)
    save_problems(
        problems, folder / "problems", splits={"train": SAMPLES, "test": TESTED}, classes=4, made_from=made_from
    )
    stressed = Stressed(
        figures={"retuned_asr": 0.5}, line=Line(t=[0.0, 0.5, 1.0], acc=[0.9, 0.8, 0.7], asr=[0.0, 0.5, 1.0])
    )
    save_stressed(stressed, folder / "stress", method="fst", parameters={}, made_from=made_from)
    return folder


def tampered(*changes: Change, sealed: bool = True) -> Callable[[Path], None]:
    """Maker of a copy of the intact artefacts, changed, and then sealed: every digest is that of what is there."""

    def make(folder: Path) -> None:
        shutil.copytree(intact(), folder, dirs_exist_ok=True)
        for change in changes:
            change(folder)
        if sealed:
            seal(folder)

    return make


def seal(folder: Path) -> None:
    """Make all digests fit, as whoever changes a file on purpose would."""
    # Triggers and overlays lie in folders of their own, with manifests that the one above lists.
    for path in sorted(folder.rglob("*.json"), key=lambda path: -len(path.parts)):
        about = _json(path)
        if isinstance(about, dict) and isinstance(about.get("files"), dict):
            for name in about["files"]:
                if "\0" not in name and (path.parent / name).is_file():
                    about["files"][name] = digest(path.parent / name)
            path.write_text(json.dumps(about))
    base = folder / "base" / "manifest.json"
    for path in (folder / "poisoned" / "manifest.json", folder / "triggered" / "blended" / "manifest.json"):
        if (
            path.is_file()
            and base.is_file()
            and isinstance(about := _json(path), dict)
            and len(about.get("base", "")) == 64
        ):
            path.write_text(json.dumps(about | {"base": digest(base)}))
    overlay = folder / "poisoned" / "manifest.json"
    if not (base.is_file() and overlay.is_file()):
        return
    made_from = {"poisoned": sha256_json([digest(base), digest(overlay)])}
    for path in folder.glob("*/*.json"):
        about = _json(path)
        if isinstance(about, dict) and isinstance(about.get("made_from"), dict) and "poisoned" in about["made_from"]:
            path.write_text(json.dumps(about | {"made_from": about["made_from"] | made_from}))
    listed = folder / "triggered" / "triggered.json"
    if isinstance(about := _json(listed), dict) and isinstance(about.get("files"), dict):
        files = {name: digest(listed.parent / name) for name in about["files"] if (listed.parent / name).is_file()}
        listed.write_text(json.dumps(about | {"files": about["files"] | files}))


def _json(path: Path) -> Any:
    try:
        return json.loads(path.read_bytes()) if path.is_file() else None
    except (OSError, ValueError, RecursionError):
        return None


def digest(path: Path) -> str:
    return sha256(path.read_bytes()).hexdigest()


def said(name: str, **values: Any) -> Change:
    """Other values under keys of a description; a key is left out where its value is `...`."""

    def change(folder: Path) -> None:
        about = json.loads((folder / name).read_text()) | values
        kept = {key: value for key, value in about.items() if value is not ...}
        (folder / name).write_text(json.dumps(kept))

    return change


def within(name: str, edit: Callable[[dict[str, Any]], object]) -> Change:
    """A description that `edit` has changed in place."""

    def change(folder: Path) -> None:
        about = json.loads((folder / name).read_text())
        edit(about)
        (folder / name).write_text(json.dumps(about))

    return change


def array(name: str, edit: Callable[[Any], NDArray[Any]]) -> Change:
    """What `edit` makes of the array in a .npy file."""

    def change(folder: Path) -> None:
        # Written only: some edits put objects into the array, which readers must refuse.
        np.save(folder / name, edit(np.load(folder / name)), allow_pickle=True)

    return change


def archive(name: str, edit: Callable[[dict[str, Any]], Mapping[str, Any]], *, packed: bool = False) -> Change:
    """What `edit` makes of the arrays in a .npz file."""

    def change(folder: Path) -> None:
        with np.load(folder / name) as old:
            arrays = dict(old)
        (np.savez_compressed if packed else np.savez)(folder / name, **edit(arrays))

    return change


def raw(name: str, edit: Callable[[bytes], bytes]) -> Change:
    """What `edit` makes of a file's bytes."""

    def change(folder: Path) -> None:
        (folder / name).write_bytes(edit((folder / name).read_bytes()))

    return change


def read_base(folder: Path) -> Any:
    """The training split and its names, as `train_backdoored` and `report` read them."""
    data = open_split(folder / "base", "train")
    return [_sum(data.gather(np.arange(len(data)))), data.labels.tolist(), read_sources(folder / "base", "train")]


def read_run(folder: Path) -> Any:
    """The poisoned set, what the attacker keeps and the truth, as stages read them."""
    base = folder / "base"
    data, test = open_poisoned(base, folder / "poisoned"), open_split(base, "test")
    truth = read_truth(folder / "truth", poisoned=data)
    hand = read_training(folder / "training", lambda: restored, poisoned=data.digest)
    held, _ = read_triggers(folder / "triggers", restored)
    keys = np.arange(len(test))
    stamped = [stamp(one.trigger, test.gather(keys), keys, train=False) for one in held.values()]
    triggered = read_triggered(folder / "triggered", base)
    shown = [[_sum(images) for _, images, _ in one.chunks()] for one in triggered.values()]
    keys = np.arange(len(data))
    assert truth is not None
    assert hand is not None
    return [_sum(data.gather(keys)), data.labels.tolist(), truth.part.tolist(), list(map(_sum, stamped)), shown]


def _sum(values: NDArray[Any]) -> str:
    return sha256(np.ascontiguousarray(values).tobytes()).hexdigest()
