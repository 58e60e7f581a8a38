"""Readers of artefacts, models and triggers, whose digests fit whatever the bytes: what they tell is more than a digest does."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from hostile.artefacts import SAMPLES, TESTED, intact, seal
from hostile.fuzz import Reader
from unpoison import models
from unpoison.attacks import restored
from unpoison.core.files import sha256_file
from unpoison.core.npy import load_array, load_arrays
from unpoison.data.problems import load_problems
from unpoison.data.scores import load_scores
from unpoison.data.store import open_poisoned, open_split
from unpoison.data.stress import load_stressed
from unpoison.data.verdicts import load_verdict
from unpoison.poisoning.attacker import read_triggers
from unpoison.poisoning.trigger import stamp
from unpoison.poisoning.truth import read_truth

CLASSES = tuple("abcde")


def _put(name: str, data: bytes, folder: Path) -> None:
    """A copy of the intact artefacts with these bytes in one file, and digests that fit them."""
    shutil.copytree(intact(), folder, dirs_exist_ok=True)
    (folder / name).write_bytes(data)
    seal(folder)


def _reader(name: str, read: Callable[[Path], Any], right: Callable[[Any, Any], bool]) -> Reader:
    def opened(data: bytes, folder: Path) -> Any:
        _put(name, data, folder)
        return read(folder)

    kind = name.replace("/", "-").replace(".", "-")
    return Reader(kind, lambda: [(intact() / name).read_bytes()], opened, right)


def _base(folder: Path) -> Any:
    data = open_split(folder / "base", "train")
    return [data.gather(np.arange(len(data))).shape, int(data.labels.min()), int(data.labels.max()), len(data.classes)]


def _poisoned(folder: Path) -> Any:
    data = open_poisoned(folder / "base", folder / "poisoned")
    assert data.overlay is not None
    index = data.overlay.index
    shape = data.gather(np.arange(len(data))).shape
    return [shape, int(data.labels.min()), int(data.labels.max()), len(data.classes), index.tolist()]


def _truth(folder: Path) -> Any:
    truth = read_truth(folder / "truth", classes=10)
    return None if truth is None else [truth.attack, len(truth.mask), truth.labels_given(10).tolist()]


def _stamped(folder: Path) -> Any:
    held, _ = read_triggers(folder / "triggers", restored)
    test = open_split(folder / "base", "test")
    keys = np.arange(len(test))
    return [stamp(one.trigger, test.gather(keys), keys, train=False).shape for one in held.values()]


def _scores(folder: Path) -> Any:
    scores = load_scores(folder / "scores", method="cd", count=SAMPLES)
    return [scores.values.shape, str(scores.values.dtype), bool(np.isfinite(scores.values).all())]


def _verdict(folder: Path) -> Any:
    verdict = load_verdict(folder / "verdict", method="mm_bd", classes=2)
    shapes = {name: (array.shape, str(array.dtype)) for name, array in verdict.aux.items()}
    return [verdict.flagged.tolist(), bool(np.isfinite(verdict.anomaly).all()), shapes]


def _problems(folder: Path) -> Any:
    found = load_problems(folder / "problems", splits={"train": SAMPLES, "test": TESTED}, classes=4)
    return [found.pairs.tolist(), found.distances.tolist(), found.constant.tolist(), found.contradicted.tolist()]


def _stress(folder: Path) -> Any:
    tests = load_stressed(folder / "stress", method="fst")
    values = [*tests.figures.values(), *tests.line.t, *tests.line.acc, *tests.line.asr]
    return [all(0 <= value <= 1 for value in values), len(tests.line.acc) == len(tests.line.t)]


def _same(valid: Any, value: Any) -> bool:
    return bool(valid == value)


def _in_range(valid: Any, value: Any) -> bool:
    # Of labels, rows and pixels within their ranges nothing but the digest, which fits here, could tell that they are others.
    return value[0] == valid[0] and 0 <= value[1] <= value[2] < value[3]


def _pairs(valid: Any, value: Any) -> bool:
    return value[1:] == valid[1:] and all(0 <= first < second < SAMPLES + TESTED for first, second in value[0])


def _poison(valid: Any, value: Any) -> bool:
    index = value[4]
    return _in_range(valid, value) and index == sorted(set(index)) and all(0 <= row < SAMPLES for row in index)


def _known(valid: Any, value: Any) -> bool:
    return value is None or (value[1] == valid[1] and all(0 <= label < 10 for label in value[2]))


def _arrays(data: bytes, folder: Path) -> Any:
    (folder / "a.npz").write_bytes(data)
    return {name: value.tobytes() for name, value in load_arrays(folder / "a.npz").items()}


def _array(data: bytes, folder: Path) -> Any:
    (folder / "a.npy").write_bytes(data)
    array = load_array(folder / "a.npy")
    return [str(array.dtype), array.nbytes]


def _checksummed(valid: Any, value: Any) -> bool:
    # Names have no checksum, contents have.
    return sorted(value.values()) == sorted(valid.values())


def _model(folder: Path) -> None:
    models.save(models.build("resnet18", width=8, num_classes=5, image_size=8), folder, classes=CLASSES, made_by={})


def _model_file(name: str) -> bytes:
    folder = intact() / "model"
    if not folder.is_dir():
        _model(folder)
    data = (folder / name).read_bytes()
    # The header alone is mutated; the tensors behind it are put back, and any finite ones would do.
    return data if name.endswith(".json") else data[: 8 + int.from_bytes(data[:8], "little")]


def _load(name: str, data: bytes, folder: Path) -> Any:
    whole = _model_file(name)
    shutil.copytree(intact() / "model", folder, dirs_exist_ok=True)
    tail = b"" if name.endswith(".json") else (folder / name).read_bytes()[len(whole) :]
    (folder / name).write_bytes(data + tail)
    if tail:
        about = json.loads((folder / "model.json").read_text())
        about["files"]["model.safetensors"] = sha256_file(folder / "model.safetensors")
        (folder / "model.json").write_text(json.dumps(about))
    return sorted((key, tuple(value.shape)) for key, value in models.load(folder).state_dict().items())


READERS = [
    _reader("base/manifest.json", _base, _in_range),
    _reader("base/train/labels.npy", _base, _in_range),
    _reader("base/train/images.npy", _base, _same),
    _reader("poisoned/manifest.json", _poisoned, _poison),
    _reader("poisoned/index.npy", _poisoned, _poison),
    _reader("truth/truth.json", _truth, _known),
    _reader("truth/part.npy", _truth, _known),
    _reader("triggers/attacker.json", _stamped, _same),
    _reader("triggers/blended/trigger.json", _stamped, _same),
    _reader("triggers/blended/trigger.npz", _stamped, _same),
    _reader("scores/scores.json", _scores, _same),
    _reader("scores/scores.npy", _scores, _same),
    _reader("scores/aux.npz", _scores, _same),
    _reader("verdict/verdict.json", _verdict, _same),
    _reader("verdict/anomaly.npy", _verdict, _same),
    _reader("verdict/aux.npz", _verdict, _same),
    _reader("problems/problems.json", _problems, _pairs),
    _reader("problems/pairs.npy", _problems, _pairs),
    _reader("stress/stress.json", _stress, _same),
    Reader("npz", lambda: [(intact() / "scores/aux.npz").read_bytes()], _arrays, _checksummed),
    Reader(
        "npy",
        lambda: [(intact() / "scores/scores.npy").read_bytes()],
        _array,
        lambda valid, value: value[1] == valid[1],
    ),
    *(
        Reader(f"model-{kind}", partial(lambda file: [_model_file(file)], name), partial(_load, name), _same)
        for kind, name in (("description", "model.json"), ("header", "model.safetensors"))
    ),
]
