"""Bad parameters: one line that names the key, what was given and what is allowed; nothing is touched."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

import check_params
from common import load_params
from conftest import with_value
from unpoison.attacks import ATTACKS
from unpoison.core.errors import UserError
from unpoison.detection import DETECTORS
from unpoison.purification import PURIFIERS

ROOT = Path(__file__).resolve().parent.parent
DEFAULT = load_params(ROOT / "params.yaml")


def changed(key: str, value: Any) -> dict[str, Any]:
    return with_value(DEFAULT, key.split("."), value)


def test_default_is_valid() -> None:
    check_params.check_all(DEFAULT)


BAD: list[tuple[str, Any, str]] = [
    ("sead", 1, r"sead: unknown key, allowed: seed, data"),
    ("seed", -1, r"seed: -1 given, allowed: a whole number from 0"),
    ("seed", True, r"seed: True given"),
    ("train", "fast", r"train: 'fast' given, allowed: a block of keys"),
    ("train.learning_rate", 0.1, r"train\.learning_rate: unknown key, allowed: recipe, epochs, batch_size"),
    ("train.epochs", 0, r"train\.epochs: 0 given; input should be greater than or equal to 1"),
    ("train.epochs", "ten", r"train\.epochs: 'ten' given; input should be a valid integer"),
    ("train.augment", ["crop", "mixup"], r"train\.augment\..*: 'mixup' given; input should be 'crop', 'flip'"),
    ("train.schedule", "linear", r"train\.schedule: 'linear' given; input should be 'onecycle'"),
    ("data.name", "cifar11", r"data\.name: 'cifar11' given, allowed: digits, folder, cifar10"),
    ("data.digits.train", 5, r"data\.digits\.train: 5 given; input should be greater than or equal to 10"),
    ("data.reserve", 0, r"data\.reserve: 0 given, allowed: at least 10"),
    ("data.reserve", 4, r"data\.reserve: 4 given, allowed: 0 or at least 10"),
    ("data.public", 0, r"data\.public: 0 given, allowed: at least 10"),
    ("data.train_limit", 0, r"data\.train_limit: 0 given; input should be greater than or equal to 1"),
    ("data.image_size", 4, r"data\.image_size: 4 given; input should be greater than or equal to 8"),
    ("data.resize", "zoom", r"data\.resize: 'zoom' given; input should be 'crop', 'stretch' or 'pad'"),
    ("data.on_error", "ignore", r"data\.on_error: 'ignore' given; input should be 'fail' or 'skip'"),
    ("data.test_share", 1.0, r"data\.test_share: 1\.0 given; input should be less than 1"),
    ("data.trusted", "public", r"data\.trusted: 'public' given; input should be 'train' or 'test'"),
    ("data.pfad", "x", r"data\.pfad: unknown key, allowed: .*path"),
    ("attack.name", "badnet", r"attack\.name: 'badnet' given, allowed: none, multi, badnets, blended"),
    ("attack.poison_rate", 1.5, r"attack\.poison_rate: 1\.5 given; input should be less than or equal to 1"),
    ("attack.poison_rate", -0.1, r"attack\.poison_rate: -0\.1 given; input should be greater than or equal to 0"),
    ("attack.target", 10, r"attack\.target: 10 given, allowed: 0 to 9"),
    ("attack.poison_count", 4321, r"attack\.poison_count: 4321 given, allowed: 1 to 4320"),
    ("attack.badnets.pattern", "zebra", r"attack\.badnets\.pattern: 'zebra' given, allowed: checkerboard"),
    ("attack.badnets.size", 40, r"attack\.badnets\.size: 40 given, allowed: 1 to 32"),
    ("attack.blended.alpha", 0.1, r"attack\.blended\.alpha: unknown key, allowed: pattern, ratio"),
    ("attack.wanet", {}, r"attack\.wanet: unknown key"),
    ("attack.label_policy", "all2two", r"attack\.label_policy: 'all2two' given; input should be 'all2one'"),
    ("attack.label_policy", "source_specific", r"attack\.sources: \[\] given, allowed with source_specific: classes"),
    ("attack.poison_rate", 1.0, r"attack\.poison_rate: 1\.0 given, which leaves no sample in class 1"),
    ("attack.badnets.location", "left", r"attack\.badnets\.location: 'left' given"),
    ("attack.lc.steps", 0, r"attack\.lc\.steps: 0 given; input should be greater than or equal to 1"),
    ("attack.multi.triggers", 3, r"attack\.multi\.triggers: 3 given; input should be a valid list"),
    ("attack.surrogate.model.name", "net", r"attack\.surrogate\.model\.name: 'net' given, allowed: resnet18"),
    ("attack.surrogate.train.epochs", 0, r"attack\.surrogate\.train\.epochs: 0 given"),
    ("attack.surrogate.model", "resnet18", r"attack\.surrogate\.model: 'resnet18' given, allowed: a block of keys"),
    ("attack.cover_ratio", float("inf"), r"attack\.cover_ratio: inf given; input should be a finite number"),
    ("attack.surrogate.models", {}, r"attack\.surrogate: .* given, allowed: blocks `model` and `train`"),
    ("model.name", "resnet19", r"model\.name: 'resnet19' given, allowed: resnet18, resnet34"),
    ("model.width", 4, r"model\.width: 4 given; input should be greater than or equal to 8"),
    ("model.depth", 3, r"model\.depth: unknown key, allowed: width, stem"),
    ("variations.strength", 0.7, r"variations\.strength: 0\.7 given, allowed: up to prior\.max_strength 0\.6"),
    ("variations.strength", 0.01, r"variations\.strength: 0\.01 given"),
    ("variations.scheduler", "euler", r"variations\.scheduler: 'euler' given; input should be 'ddim' or 'dpmsolver"),
    ("distill.alpha", 2, r"distill\.alpha: 2 given; input should be less than or equal to 1"),
    ("distill.train.epoch", 2, r"distill\.train\.epoch: unknown key, allowed: recipe, epochs"),
    ("distill.train.recipe", "airbench", r"distill\.train\.recipe: 'airbench' given, allowed: default, fst"),
    ("detect.methods", ["cd", "abd"], r"detect\.methods: 'abd' given, allowed: cd, ac, ss, strip"),
    ("detect.methods", ["cd", "cd"], r"detect\.methods: .* given, allowed: a list out of cd, ac"),
    ("detect.methods", "cd", r"detect\.methods: 'cd' given, allowed: a list out of cd"),
    ("detect.cd.stepz", 3, r"detect\.cd\.stepz: unknown key, allowed: seed, steps"),
    ("detect.cd.seed", 3, r"detect\.cd\.seed: given, allowed: the run's `seed`"),
    ("detect.abl", {}, r"detect\.abl: 'abl' given, allowed: cd"),
    ("detect.strip.overlays", 601, r"detect\.strip\.overlays: 601 given, allowed: 1 to 600"),
    ("purify.fst.alpha", "big", r"purify\.fst\.alpha: 'big' given; input should be a valid number"),
    ("report.samples", 0, r"report\.samples: 0 given"),
]


@pytest.mark.parametrize(("key", "value", "message"), BAD)
def test_bad_value(key: str, value: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        check_params.check_all(changed(key, value))
    assert "\n" not in str(caught.value)


def test_small_numbers_written_by_dvc_are_numbers(tmp_path: Path) -> None:
    text = (ROOT / "params.yaml").read_text().replace("lr: null  ", "lr: 1e-05  ", 1)
    (tmp_path / "params.yaml").write_text(text)
    params = load_params(tmp_path / "params.yaml")
    assert params["train"]["lr"] == 1e-5
    check_params.check_all(params)


def test_params_blocks_match_the_families() -> None:
    assert set(DEFAULT["detect"]) - {"methods"} == set(DETECTORS)
    assert set(DEFAULT["purify"]) - {"methods"} == set(PURIFIERS)
    assert set(ATTACKS) <= set(DEFAULT["attack"])


@pytest.mark.parametrize(
    ("stage", "replace", "message"),
    [
        ("check_params", ("poison_rate: 0.1", "poison_rate: 7"), "attack.poison_rate: 7 given"),
        ("prepare", ("name: digits", "name: letters"), "data.name: 'letters' given, allowed: digits"),
        ("poison", ("target: 0", "target: eight"), "attack.target: 'eight' given"),
    ],
)
def test_a_stage_ends_with_one_line_and_status_1(
    stage: str, replace: tuple[str, str], message: str, tmp_path: Path
) -> None:
    (tmp_path / "params.yaml").write_text((ROOT / "params.yaml").read_text().replace(*replace, 1))
    script = ROOT / "stages" / f"{stage}.py"
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run([sys.executable, script], cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert message in done.stderr
    assert [p.name for p in tmp_path.iterdir()] == ["params.yaml"]
