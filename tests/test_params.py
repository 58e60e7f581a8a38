"""Bad parameters: one line that names the key, what was given and what is allowed; nothing is touched."""

from __future__ import annotations

import os
import subprocess
import sys
from copy import deepcopy
from pathlib import Path
from typing import Any

import pytest

import check_params
from parameters import PARAMS, load_params
from robust_networks import robust_network_of, student_network_of
from tiny import write_params
from unpoison.core.errors import UserError
from unpoison.training import privacy

ROOT = Path(__file__).resolve().parent.parent
DEFAULT = load_params(ROOT)


def changed(key: str, value: Any) -> dict[str, Any]:
    """The default parameters with one override, as `dvc exp run -S` takes it."""
    file, _, dotted = key.rpartition(":")
    params: Any = deepcopy(dict(DEFAULT))
    inner = params[file] if file else params
    *sections, last = dotted.split(".")
    for name in sections:
        inner = inner[name]
    inner[last] = value
    return dict(params)


def test_default_is_valid() -> None:
    check_params.check_all(DEFAULT)


BAD: list[tuple[str, Any, str]] = [
    ("sead", 1, r"sead: unknown key, allowed: seed, control, received, data"),
    ("seed", -1, r"seed: -1 given, allowed: a whole number from 0"),
    ("seed", True, r"seed: True given"),
    ("train", "fast", r"train: 'fast' given, allowed: a block of keys"),
    ("train.learning_rate", 0.1, r"train\.learning_rate: unknown key, allowed: recipe, epochs, batch_size"),
    ("train.epochs", 0, r"train\.epochs: 0 given; input should be greater than or equal to 1"),
    ("train.epochs", "ten", r"train\.epochs: 'ten' given; input should be a valid integer"),
    ("train.augment", ["crop", "mixup"], r"train\.augment\..*: 'mixup' given; input should be 'crop', 'flip'"),
    ("train.schedule", "step", r"train\.schedule: 'step' given; input should be 'onecycle'"),
    ("train.federation", 3, r"train\.federation: 3 given, allowed: a block of keys"),
    ("train.federation", {"client": 3}, r"train\.federation\.client: unknown key, allowed: clients, per_round, rounds"),
    (
        "train.federation",
        {"attackers": 0},
        r"train\.federation\.attackers: 0 given, allowed with an attack: at least 1",
    ),
    ("train.federation", {"attackers": 1}, r"train\.whiten: true given, allowed with federation: false, as nobody has"),
    (
        "train.federation",
        {"attackers": 1, "scale": float("inf")},
        r"federation\.scale: inf given; input should be a finite",
    ),
    ("train.privacy", 3, r"train\.privacy: 3 given, allowed: a block of keys"),
    ("train.privacy", {}, r"train\.privacy\.noise: null given, allowed: a noise multiplier, or in its place epsilon"),
    ("train.privacy", {"sigma": 1.0}, r"train\.privacy\.sigma: unknown key, allowed: noise, epsilon, delta, clip$"),
    ("train.privacy", {"noise": float("nan")}, r"train\.privacy\.noise: nan given; input should be a finite number"),
    (
        "train.privacy",
        {"noise": 1.0, "epsilon": 8.0},
        r"privacy\.noise: 1\.0 given, allowed beside epsilon 8\.0: null$",
    ),
    (
        "train.privacy",
        {"noise": 1.0},
        r"train\.whiten: true given, allowed with privacy: false, as its filters are made",
    ),
    ("distill.train.privacy", {"noise": 1.0}, r"distill\.train\.privacy: unknown key, allowed: recipe, epochs"),
    ("model.norm", "layer", r"model\.norm: 'layer' given; input should be 'batch' or 'group'"),
    ("robust.methods", ["gradient_shaping"], r"model: a network with BatchNorm2d given, .* with norm: group are"),
    ("data.name", "cifar11", r"data\.name: 'cifar11' given, allowed: digits, folder, cifar10"),
    ("data.digits.train", 5, r"data\.digits\.train: 5 given; input should be greater than or equal to 10"),
    ("data.reserve", 0, r"data\.reserve: 0 given, allowed: at least 1, ft needs them$"),
    ("data.reserve", 4, r"data\.reserve: 4 given, allowed: 0 or at least 10"),
    ("data.reserve", True, r"data\.reserve: True given; allowed: a whole number from 0, or a share"),
    ("data.reserve", -1, r"data\.reserve: -1 given; allowed: a whole number from 0, or a share"),
    ("data.reserve", -0.1, r"data\.reserve: -0\.1 given; allowed: a whole number from 0, or a share"),
    ("data.reserve", 0.0, r"data\.reserve: 0\.0 given; allowed: a whole number from 0, or a share"),
    ("data.reserve", 1.0, r"data\.reserve: 1\.0 given; allowed: a whole number from 0, or a share"),
    ("data.reserve", float("nan"), r"data\.reserve: nan given; allowed: a whole number from 0, or a share"),
    ("data.reserve", "5%", r"data\.reserve: '5%' given; allowed: a whole number from 0, or a share"),
    ("data.reserve", [5], r"data\.reserve: \[5\] given; allowed: a whole number from 0, or a share"),
    ("data.reserve", 0.001, r"data\.reserve: 0\.001 given, 5 images, allowed: 0 or at least 10, one per class"),
    ("data.reserve", 0.0025, r"data\.reserve: 0\.0025 given, 12 images, allowed: at least 24, strip needs them"),
    ("data.reserve_from", "test", r"data\.reserve_from: 'test' given; input should be 'held_out', 'train' or 'other'"),
    (
        "data.reserve_from",
        "other",
        r"data\.reserve_path: 'data/reserve_source' given, where there is nothing; allowed with",
    ),
    (
        "data.reserve_path",
        "x",
        r"data\.reserve_path: 'x' given, allowed with reserve_from: other; without it data/reserve",
    ),
    ("data.reserve_path", None, r"data\.reserve_path: None given; input should be a valid string"),
    ("data.public", 0, r"data\.public: 0 given, allowed: at least 10"),
    ("data.train_limit", 0, r"data\.train_limit: 0 given; input should be greater than or equal to 1"),
    ("data.image_size", 4, r"data\.image_size: 4 given; input should be greater than or equal to 8"),
    ("data.resize", "zoom", r"data\.resize: 'zoom' given; input should be 'crop', 'stretch' or 'pad'"),
    ("data.on_error", "ignore", r"data\.on_error: 'ignore' given; input should be 'fail' or 'skip'"),
    ("data.test_share", 1.0, r"data\.test_share: 1\.0 given; input should be less than 1"),
    ("data.trusted", "public", r"data\.trusted: 'public' given; input should be 'train' or 'test'"),
    ("data.pfad", "x", r"data\.pfad: unknown key, allowed: .*path"),
    ("attack.name", "badnet", r"attack\.name: 'badnet' given, allowed: none, badnets, blended"),
    ("attack.poison_rate", 1.5, r"attack\.poison_rate: 1\.5 given; input should be less than or equal to 1"),
    ("attack.poison_rate", -0.1, r"attack\.poison_rate: -0\.1 given; input should be greater than or equal to 0"),
    ("attack.target", 10, r"attack\.target: 10 given, allowed: 0 to 9"),
    ("attack.poison_count", 4321, r"attack\.poison_count: 4321 given, allowed: 1 to 4320"),
    (
        "params/attacks.yaml:badnets.pattern",
        "zebra",
        r"params/attacks\.yaml: badnets\.pattern: 'zebra' given, allowed: checkerboard",
    ),
    ("params/attacks.yaml:badnets.size", 40, r"params/attacks\.yaml: badnets\.size: 40 given, allowed: 1 to 32"),
    (
        "params/attacks.yaml:blended.alpha",
        0.1,
        r"params/attacks\.yaml: blended\.alpha: unknown key, allowed: pattern, ratio",
    ),
    ("params/attacks.yaml:sinkhole", {}, r"params/attacks\.yaml: sinkhole: 'sinkhole' given, allowed: none, badnets"),
    ("attack.label_policy", "all2two", r"attack\.label_policy: 'all2two' given; input should be 'all2one'"),
    ("attack.label_policy", "source_specific", r"attack\.sources: \[\] given, allowed with source_specific: classes"),
    ("attack.poison_rate", 1.0, r"attack\.poison_rate: 1\.0 given, which leaves no sample in class 1"),
    ("params/attacks.yaml:badnets.location", "left", r"params/attacks\.yaml: badnets\.location: 'left' given"),
    (
        "params/attacks.yaml:lc.steps",
        0,
        r"params/attacks\.yaml: lc\.steps: 0 given; input should be greater than or equal to 1",
    ),
    (
        "params/attacks.yaml:multi.triggers",
        3,
        r"params/attacks\.yaml: multi\.triggers: 3 given; input should be a valid list",
    ),
    ("attack.surrogate.model.name", "net", r"attack\.surrogate\.model\.name: 'net' given, allowed: resnet18"),
    ("attack.surrogate.train.epochs", 0, r"attack\.surrogate\.train\.epochs: 0 given"),
    ("attack.surrogate.model", "resnet18", r"attack\.surrogate\.model: 'resnet18' given, allowed: a block of keys"),
    ("attack.cover_ratio", float("inf"), r"attack\.cover_ratio: inf given; input should be a finite number"),
    ("attack.surrogate.data", 1, r"attack\.surrogate\.data: 1 given, allowed: true or false"),
    ("attack.surrogate.models", {}, r"attack\.surrogate: .* given, allowed: `data`, and blocks `model` and `train`"),
    ("model.name", "resnet19", r"model\.name: 'resnet19' given, allowed: resnet18, resnet34"),
    ("model.width", 4, r"model\.width: 4 given; input should be greater than or equal to 8"),
    ("model.depth", 3, r"model\.depth: unknown key, allowed: width, stem"),
    ("robust.model.name", "resnet19", r"robust\.model\.name: 'resnet19' given, allowed: resnet18, resnet34"),
    ("robust.model.width", 4, r"robust\.model\.width: 4 given; input should be greater than or equal to 8"),
    ("robust.model.width", "wide", r"robust\.model\.width: 'wide' given; input should be a valid integer"),
    ("robust.model.depth", 3, r"robust\.model\.depth: unknown key, allowed: width, stem"),
    ("robust.model", {"name": "vgg19_bn", "stem": "conv3"}, r"robust\.model\.stem: unknown key, allowed: width$"),
    ("robust.model", "vgg19_bn", r"robust\.model: 'vgg19_bn' given, allowed: a block of keys"),
    ("robust.modell", {}, r"robust\.modell: unknown key, allowed: by, methods, model$"),
    ("distill.model.name", "resnet19", r"distill\.model\.name: 'resnet19' given, allowed: resnet18, resnet34"),
    ("distill.model.width", 4, r"distill\.model\.width: 4 given; input should be greater than or equal to 8"),
    ("distill.model.depth", 3, r"distill\.model\.depth: unknown key, allowed: width, stem"),
    ("distill.model", ["vgg19_bn"], r"distill\.model: \['vgg19_bn'\] given, allowed: a block of keys"),
    ("distill.teachers", [], r"distill\.teachers: unknown key, allowed: model, teacher, train$"),
    (
        "distill.teacher",
        None,
        r"distill\.teacher: None given, allowed: models/backdoored, or the folder of a model from",
    ),
    ("distill.teacher", "", r"distill\.teacher: '' given, allowed: models/backdoored, or the folder of a model from"),
    ("distill.teacher", "x\0y", r"distill\.teacher: 'x\\x00y' given, where no model lies; allowed: models/backdoored"),
    (
        "distill.teacher",
        str(ROOT / "docs"),
        r"distill\.teacher: '/.*' given, where no model lies; allowed: models/back",
    ),
    (
        "distill.teacher",
        "models/clean",
        r"distill\.teacher: 'models/clean' given, which other stages write; allowed: m",
    ),
    ("distill.teacher", "./models/purified/ft", r"'\./models/purified/ft' given, which other stages write; allowed: m"),
    ("variations.method", "sde", r"variations\.method: 'sde' given, allowed: sdedit, pure_gen, "),
    ("variations.method", None, r"variations\.method: None given, allowed: sdedit, pure_gen, "),
    ("variations.strength", 0.5, r"variations\.strength: unknown key, allowed: num_variations, color_transfer"),
    (
        "params/robust.yaml:distillation.alpha",
        2,
        r"params/robust\.yaml: distillation\.alpha: 2 given; input should be less than or equal to 1",
    ),
    ("distill.train.epoch", 2, r"distill\.train\.epoch: unknown key, allowed: recipe, epochs"),
    ("distill.train.recipe", "airbench", r"distill\.train\.recipe: 'airbench' given, allowed: default, fst"),
    ("detect.methods", ["cd", "abd"], r"detect\.methods: 'abd' given, allowed: cd, ac, ss, strip"),
    ("detect.methods", ["cd", "cd"], r"detect\.methods: .* given, allowed: a list out of cd, ac"),
    ("detect.methods", "cd", r"detect\.methods: 'cd' given, allowed: a list out of cd"),
    ("detect.sample", 0, r"detect\.sample: 0 given; input should be greater than or equal to 1"),
    ("detect.sample", 0.1, r"detect\.sample: 0\.1 given; input should be a valid integer"),
    ("detect.sample", 4801, r"detect\.sample: 4801 given, allowed: at most 4800, the training images; null: all"),
    ("detect.sample", 29, r"detect\.sample: 29 given, allowed: at least 30, 3 for each of 10 classes"),
    ("detect.samples", 100, r"detect\.samples: unknown key, allowed: sample"),
    ("detect.models", ["cd"], r"detect\.models: \['cd'\] given, allowed: a list out of neural_cleanse, mm_bd"),
    ("detect.models", ["mm_bd", "mm_bd"], r"detect\.models: .* given, allowed: a list out of neural_cleanse, mm_bd"),
    ("detect.models", None, r"detect\.models: None given; input should be a valid list"),
    ("params/detectors.yaml:mm_bd.momentum", 1.0, r"params/detectors\.yaml: mm_bd\.momentum: 1\.0 given"),
    ("params/detectors.yaml:cd.stepz", 3, r"params/detectors\.yaml: cd\.stepz: unknown key, allowed: seed, steps"),
    ("params/detectors.yaml:cd.seed", 3, r"params/detectors\.yaml: cd\.seed: given, allowed: the run's `seed`"),
    ("params/detectors.yaml:fst", {}, r"params/detectors\.yaml: fst: 'fst' given, allowed: cd"),
    ("params/detectors.yaml:strip.overlays", 601, r"data\.reserve: 600 given, allowed: at least 601, strip needs them"),
    (
        "params/purifiers.yaml:fst.alpha",
        "big",
        r"params/purifiers\.yaml: fst\.alpha: 'big' given; input should be a valid number",
    ),
    ("params/purifiers.yaml:ft", 3, r"params/purifiers\.yaml: ft: 3 given, allowed: a block of keys"),
    ("purify.methods", ["ft", "fst", "ft"], r"purify\.methods: .* given, allowed: a list out of ft, lp"),
    (
        "purify.methods",
        ["ft", "dbr"],
        r"purify\.methods: 'dbr' given, which builds on scores; allowed: purify\.by\.dbr: scores/NAME$",
    ),
    ("purify.by", None, r"purify\.by: None given, allowed: artefacts by method; none: \{\}$"),
    ("purify.by", {"nonsense": "scores/cd"}, r"purify\.by: 'nonsense' given, allowed: dbr, unlearn, nc_unlearn$"),
    ("purify.by", {"ft": "scores/cd"}, r"purify\.by: 'ft' given, allowed: dbr, unlearn, nc_unlearn$"),
    ("purify.by.dbr", None, r"purify\.by\.dbr: None given, allowed: scores/NAME$"),
    (
        "purify.by.dbr",
        "verdicts/neural_cleanse",
        r"purify\.by\.dbr: 'verdicts/neural_cleanse' given, allowed: scores/N",
    ),
    ("purify.by.nc_unlearn", "scores/cd", r"purify\.by\.nc_unlearn: 'scores/cd' given, allowed: verdicts/NAME$"),
    ("purify.by.dbr", "scores/../truth", r"purify\.by\.dbr: 'scores/\.\./truth' given, allowed: scores/NAME$"),
    (
        "purify.by.dbr",
        "scores/fct",
        r"purify\.by\.dbr: 'scores/fct' given, allowed: those of detect\.methods, scores/cd, scores/ac, scores/ss, scores/strip$",
    ),
    (
        "purify.by.nc_unlearn",
        "verdicts/neural_cleanse",
        r"'verdicts/neural_cleanse' given, allowed: those of detect\.models, which is empty$",
    ),
    (
        "stress.methods",
        ["fst", "nad"],
        r"stress\.methods: .* given, allowed: a list out of the models that are purified: ft",
    ),
    (
        "stress.methods",
        ["ft", "ft"],
        r"stress\.methods: .* given, allowed: a list out of the models that are purified: ft",
    ),
    ("stress.methods", "ft", r"stress\.methods: 'ft' given; input should be a valid list"),
    ("stress.points", 1, r"stress\.points: 1 given; input should be greater than or equal to 2"),
    ("stress.budget", 0, r"stress\.budget: 0 given; input should be "),
    (
        "visualise.figures",
        ["embeding"],
        r"visualise\.figures: 'embeding' given, allowed: embedding, confusion, grad_cam, .*, neurons$",
    ),
    (
        "visualise.figures",
        ["neurons", "neurons"],
        r"visualise\.figures: \['neurons', 'neurons'\] given, allowed: each once$",
    ),
    ("visualise.figures", "neurons", r"visualise\.figures: 'neurons' given; input should be a valid list"),
    (
        "visualise.models",
        ["purified/nad"],
        r"visualise\.models: 'purified/nad' given, allowed: a list out of .*, clean, student, purified/ft, purified/fst$",
    ),
    ("visualise.colour", "red", r"visualise\.colour: unknown key, allowed: models, figures$"),
    ("control", 1, r"control: 1 given, allowed: true, false"),
    ("stress.reactivation", 1, r"stress\.reactivation: 1 given; input should be a valid boolean"),
    ("stress.rate", 1, r"stress\.rate: unknown key, allowed: methods, poisoned"),
    ("robust.methods", ["fst"], r"robust\.methods: 'fst' given, allowed: distillation"),
    (
        "robust.methods",
        ["filter_retrain"],
        r"robust\.methods: 'filter_retrain' given, which builds on scores; allowed: robust\.by\.filter_retrain: scores/NAME$",
    ),
    ("robust.by", {"abl": "scores/cd"}, r"robust\.by: 'abl' given, allowed: filter_retrain"),
    (
        "robust.by.filter_retrain",
        "scores/fct",
        r"robust\.by\.filter_retrain: 'scores/fct' given, allowed: those of detect\.methods, scores/cd, scores/ac",
    ),
    ("robust.methods", ["distillation"], r"robust\.methods: 'distillation' given, allowed: methods that need no"),
    ("variations.enabled", 1, r"variations\.enabled: 1 given, allowed: true, false"),
    ("report.samples", 0, r"report\.samples: 0 given"),
]


@pytest.mark.parametrize(("key", "value", "message"), BAD)
def test_bad_value(key: str, value: Any, message: str) -> None:
    with pytest.raises(UserError, match=message) as caught:
        check_params.check_all(changed(key, value))
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("section", ["robust.model", "distill.model"])
def test_another_network_is_the_victims_with_changes_or_one_of_its_own(section: str) -> None:
    victim = {"name": "resnet18", "width": 16, "stem": "conv3_pool"}
    for given, expected in (
        ({}, victim),
        (None, victim),
        ({"name": None, "width": 8}, {**victim, "width": 8}),
        ({"name": "resnet18"}, {"name": "resnet18"}),
        ({"name": "densenet121", "growth": 8}, {"name": "densenet121", "growth": 8}),
    ):
        params = changed(section, given)
        assert (robust_network_of if section == "robust.model" else student_network_of)(params) == expected


def make_dangling(path: Path) -> None:
    path.symlink_to("nothing")


@pytest.mark.parametrize(
    ("make", "what"), [(make_dangling, "a link that leads nowhere"), (os.mkfifo, "a pipe or device")]
)
@pytest.mark.parametrize("on_error", ["fail", "skip"])
def test_what_dvc_cannot_read_is_said_before_it_tries(make: Any, what: str, on_error: str, tmp_path: Path) -> None:
    # DVC hashes the whole source before `prepare` runs: it fails at a link to nothing, and waits for ever at a pipe.
    (tmp_path / "photos/cat").mkdir(parents=True)
    (tmp_path / "photos/loop").symlink_to("../photos")
    params = changed("data.path", str(tmp_path / "photos"))
    params["data"] |= {"on_error": on_error}
    check_params.check_all(params)
    make(tmp_path / "photos/cat/x.png")
    with pytest.raises(
        UserError, match=rf"data\.path: .*cat/x\.png' is {what}; allowed: files and folders that DVC can read"
    ):
        check_params.check_all(params)
    with pytest.raises(UserError, match=what):
        check_params.check_all(changed("data.path", str(tmp_path / "photos/cat/x.png")))


@pytest.mark.parametrize(
    "changes",
    [
        {"detect.methods": [], "purify.methods": []},
        {"variations.enabled": False, "data.public": 0},
        {"purify.methods": [], "data.reserve": 0, "detect.methods": ["ac"]},
        {"attack.name": "none", "attack.target": 12},
        {"purify.methods": [], "data.reserve": 0, "detect.methods": [], "detect.models": ["mm_bd"]},
    ],
)
def test_branches_may_be_empty(changes: dict[str, Any]) -> None:
    params: Any = deepcopy(dict(DEFAULT))
    for key, value in changes.items():
        section, name = key.split(".")
        params[section][name] = value
    check_params.check_all(params)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"attack.name": "none"},
            r"stress\.methods: \['fst'\] given, allowed with attack\.name none, .*: \[\], or with a trigger",
        ),
        (
            {"stress.poisoned": 600},
            r"stress\.poisoned: 600 given, allowed: fewer than data\.reserve, 600 trusted images$",
        ),
        ({"purify.methods": []}, r"stress\.methods: \['fst'\] given, allowed: \[\], no model is purified$"),
    ],
)
def test_stress_tests_need_an_attack_and_a_purified_model(changes: dict[str, Any], message: str) -> None:
    params: Any = deepcopy(dict(DEFAULT))
    params["stress"]["methods"] = ["fst"]
    check_params.check_all(params)
    for key, value in changes.items():
        section, name = key.split(".")
        params[section][name] = value
    with pytest.raises(UserError, match=rf"^params\.yaml: {message}"):
        check_params.check_all(params)


def test_an_inspector_may_need_trusted_images() -> None:
    params: Any = deepcopy(dict(DEFAULT))
    params["data"] |= {"reserve": 0}
    params["purify"]["methods"], params["detect"]["methods"] = [], []
    params["detect"]["models"] = ["neural_cleanse"]
    with pytest.raises(UserError, match=r"reserve: 0 given, allowed: at least 1, neural_cleanse needs them$"):
        check_params.check_all(params)


def test_a_robust_method_may_need_trusted_images() -> None:
    params: Any = deepcopy(dict(DEFAULT))
    params["data"] |= {"reserve": 0}
    params["purify"]["methods"], params["detect"]["methods"] = [], ["ac"]
    params["robust"]["by"] = {"filter_retrain": "scores/ac"}
    check_params.check_all(params)
    params["robust"]["methods"] = ["abl", "pdb"]
    with pytest.raises(UserError, match=r"reserve: 0 given, allowed: at least 1, pdb needs them$"):
        check_params.check_all(params)


def test_a_purifier_without_data_needs_no_trusted_images() -> None:
    params: Any = deepcopy(dict(DEFAULT))
    params["data"] |= {"reserve": 0}
    params["purify"]["methods"], params["detect"]["methods"] = ["clp"], []
    check_params.check_all(params)
    params["purify"]["methods"] = ["clp", "fp"]
    with pytest.raises(UserError, match=r"reserve: 0 given, allowed: at least 2, fp needs them$"):
        check_params.check_all(params)


def test_small_numbers_written_by_dvc_are_numbers(tmp_path: Path) -> None:
    write_params(tmp_path, {})
    text = (tmp_path / "params.yaml").read_text().replace("lr: null", "lr: 1e-05", 1)
    (tmp_path / "params.yaml").write_text(text)
    params = load_params(tmp_path)
    assert params["train"]["lr"] == 1e-5
    check_params.check_all(params)


@pytest.mark.parametrize("text", ["seed: [0", "seed: 0\nseed: 1", "- seed", "note: \xff"])
def test_files_that_are_no_parameters(text: str, tmp_path: Path) -> None:
    write_params(tmp_path, {})
    (tmp_path / "params.yaml").write_bytes(text.encode("latin-1"))
    with pytest.raises(
        UserError, match=r"params\.yaml: (not readable as YAML|a list found, allowed: a block)"
    ) as caught:
        load_params(tmp_path)
    assert "\n" not in str(caught.value)


def test_a_missing_block_names_the_command_that_writes_it(tmp_path: Path) -> None:
    params: Any = deepcopy(dict(DEFAULT))
    del params["params/detectors.yaml"]["ac"]
    with pytest.raises(UserError, match=r"params/detectors\.yaml: ac: missing, .*`make params`"):
        check_params.check_all(params)


def test_a_scenario_fits_a_page() -> None:
    lines = (ROOT / PARAMS).read_text().splitlines()
    assert len(lines) <= 160
    assert all(len(line) <= 132 for line in lines)


def test_a_stage_ends_with_one_line_and_status_1(tmp_path: Path) -> None:
    # One process for the exit status; what is wrong with which value is tested above, in this one.
    write_params(tmp_path, {"attack.poison_rate": 7})
    before = sorted(tmp_path.rglob("*"))
    environment = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    command = [sys.executable, str(ROOT / "stages" / "check_params.py")]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, env=environment)
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "params.yaml: attack.poison_rate: 7 given" in done.stderr
    assert sorted(tmp_path.rglob("*")) == before


def test_several_runs_are_checked_at_once(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    check_params.check_runs({"good": DEFAULT, "other": changed("seed", 3)})
    with pytest.raises(UserError, match=r"^bad: params\.yaml: seed: -1 given"):
        check_params.check_runs({"good": DEFAULT, "bad": changed("seed", -1)})


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        (
            {"attack.poison_first": False},
            r"given with attack\.poison_first: false or attack\.random_poisoning: true, allowed",
        ),
        ({"attack.name": "bypass"}, r"given with attack\.name: badnets, which trains the victim"),
        ({"attack.name": "none"}, r"attackers: 1 given, allowed with attack\.name none: 0"),
        ({"detect.canary": [0]}, r"detect\.canary: \[0\] given, allowed with train\.federation: \[\]"),
        (
            {"train.federation": {"attackers": 1, "clients": 3000}},
            r"clients: 3000 given, allowed: up to 2400, 2 each of 4800",
        ),
    ],
)
def test_a_federation_that_the_scenario_does_not_allow(changes: dict[str, Any], line: str) -> None:
    params: Any = deepcopy(dict(DEFAULT))
    for key, value in {"train.whiten": False, "train.federation": {"attackers": 1}, **changes}.items():
        section, _, name = key.partition(".")
        params[section][name] = value
    with pytest.raises(UserError, match=line):
        check_params.check_all(params)


@pytest.mark.parametrize(
    ("changes", "line"),
    [
        ({"model.norm": None}, r"model: a network with BatchNorm2d given, which mixes the samples of a batch"),
        (
            {"robust.model": {"norm": "batch"}, "robust.by": {"filter_retrain": "scores/cd"}},
            r"robust\.model: a network with BatchNorm2d given",
        ),
        (
            {"attack.random_poisoning": True},
            r"train\.privacy: given with attack\.poison_first: false or attack\.random_poisoning: true, allowed: an attack that",
        ),
        (
            {"attack.name": "bypass"},
            r"train\.privacy: given with attack\.name: badnets, which trains the victim, allowed",
        ),
        (
            {"train.federation": {"attackers": 1}},
            r"train\.privacy: given, allowed with train\.federation, which .*: null$",
        ),
        (
            {"robust.methods": ["gradient_shaping"]},
            r"robust: 'gradient_shaping' given, allowed with train\.privacy: filter_retrain",
        ),
        (
            {"train.batch_size": 5000},
            r"train\.batch_size: 5000 given, allowed with privacy: up to the 4800 training samples$",
        ),
    ],
)
def test_a_privacy_that_the_scenario_does_not_allow(
    changes: dict[str, Any], line: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(check_params, "check_installed", lambda: None)
    # Asked of an accountant that is an extra; what it says is tested in test_privacy.py.
    monkeypatch.setattr(privacy, "epsilon_of", lambda noise, **_: 1.0 / noise)
    check_params.check_all(private_params())
    with pytest.raises(UserError, match=line) as refused:
        check_params.check_all(private_params(**changes))
    assert "\n" not in str(refused.value)


def private_params(**changes: Any) -> Any:
    params: Any = deepcopy(dict(DEFAULT))
    private = {"model.norm": "group", "train.whiten": False, "train.privacy": {"noise": 1.0}}
    for key, value in {**private, **changes}.items():
        section, _, name = key.partition(".")
        params[section][name] = value
    return params


def test_a_privacy_without_opacus_or_that_no_noise_leads_to(monkeypatch: pytest.MonkeyPatch) -> None:
    with monkeypatch.context() as patch:
        patch.setattr(privacy, "find_spec", lambda name: None)
        with pytest.raises(
            UserError, match=r"^params\.yaml: train\.privacy: given, .*: `pip install '\.\[privacy\]'` first"
        ):
            check_params.check_all(private_params())
    monkeypatch.setattr(check_params, "check_installed", lambda: None)
    monkeypatch.setattr(privacy, "epsilon_of", lambda noise, **_: 1.0 / noise)
    with pytest.raises(
        UserError, match=r"train\.privacy\.epsilon: 0\.001 given, allowed with delta 0\.0001 and 304 steps"
    ):
        check_params.check_all(private_params(**{"train.privacy": {"epsilon": 0.001}}))


def test_a_model_that_was_received_is_not_trained_in_private(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(check_params, "received_of", lambda params: None)
    with pytest.raises(
        UserError, match=r"train\.privacy: given, allowed with received 'models/theirs': null, nobody is"
    ):
        check_params.check_all({**private_params(), "received": "models/theirs"})
