"""The audit of a model that was received: hand-made networks, the verdict's words, the stages, and what is refused."""

from __future__ import annotations

import subprocess
from collections.abc import Mapping
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import check_params
from parameters import load_params
from planted import Planted
from report_runs import metrics_of, run_of, truth_of
from small_archives import zip_bytes
from tiny import ROOT, TINY, run_stages, write_params
from unpoison import models, workflow
from unpoison.audit import command
from unpoison.audit.__main__ import main
from unpoison.audit.command import check_understood, split_sizes
from unpoison.audit.scenario import overrides
from unpoison.core.errors import UserError
from unpoison.core.files import sha256_file
from unpoison.data.imageset import ImageSet
from unpoison.data.stress import load_stressed
from unpoison.data.verdicts import Verdict, suspected_and_control
from unpoison.inspection import INSPECTORS
from unpoison.models.classifier import Backbone, Classifier
from unpoison.reporting.audit import level_of, near_chance, section_of
from unpoison.reporting.sections import report
from unpoison.sources import digits
from unpoison.sources.folder import open_folder
from unpoison.stress.reversed import reversed_figures, with_trigger

DEFAULT = load_params(ROOT)


class Ninths(nn.Module):
    """Brightness of each ninth of 12x12 px, and how far two pixels of the corner are brighter than the two beside them."""

    def forward(self, images: Tensor) -> Tensor:
        grey = images.mean(1)
        ninths = nn.functional.avg_pool2d(grey, 4).flatten(1)
        corner = (grey[:, 0, 0] - grey[:, 0, 1] + grey[:, 1, 1] - grey[:, 1, 0])[:, None]
        return torch.cat([ninths, corner.relu()], 1)[:, :, None, None]


def by_hand(backdoor: float) -> Classifier:
    """Class by the brightest ninth, each with a weight of its own; the corner's pattern leads to class 4 with `backdoor`."""
    description = {"name": "ninths", "arguments": {}, "num_classes": 9, "image_size": [12, 12], "channels": 3}
    body, head = Backbone(Ninths(), nn.Flatten(), traceable=False), nn.Linear(10, 9, bias=False)
    with torch.no_grad():
        weights = 20 + torch.tensor([4.0, 1, 7, 3, 5, 0, 8, 2, 6])
        head.weight.copy_(torch.cat([torch.diag(weights), torch.zeros(9, 1)], 1))
        head.weight[4, 9] = backdoor
    return Classifier(body, head, description | {"mean": [0.0] * 3, "std": [1.0] * 3})


def level(model: Classifier) -> tuple[int, set[int]]:
    """What the inspectors of an audit say together, and the classes that each of them ranks first."""
    regions = np.random.default_rng(0).integers(0, 64, (64, 3, 3, 3), dtype=np.uint8)
    reserve = ImageSet(regions.repeat(4, 1).repeat(4, 2), np.arange(64) % 9, tuple("abcdefghi"))
    verdicts = [
        INSPECTORS["neural_cleanse"].inspect(model, reserve, seed=0, threshold=2.8),
        INSPECTORS["mm_bd"].inspect(model, reserve, seed=0, lr=0.1, images=5),
    ]
    foremost = [int(verdict.anomaly.argmax()) for verdict in verdicts]
    return level_of([int(verdict.flagged.sum()) for verdict in verdicts], foremost), set(foremost)


def test_a_backdoor_by_hand_is_found_and_none_where_there_is_none() -> None:
    # Over seeds 0 to 2 class 4 has an index of 3.6 and more with Neural Cleanse and 49 and more with MM-BD, and without the
    # backdoor no class has more than 1.8 and 0.7 (flagged from 1.3 on).
    assert level(by_hand(60)) == (2, {4})
    assert level(by_hand(0))[0] == 0


@pytest.mark.parametrize(
    ("flagged", "foremost", "expected"),
    [([0, 0], [1, 1], 0), ([1, 0], [1, 1], 1), ([1, 1], [1, 2], 1), ([2, 1], [1, 1], 2), ([1], [1], 1), ([], [], 0)],
)
def test_levels(flagged: list[int], foremost: list[int], expected: int) -> None:
    assert level_of(flagged, foremost) == expected


def test_chance_is_told_from_knowledge_by_the_interval() -> None:
    assert near_chance(0.1, 60, 0.1)
    assert near_chance(0.16, 60, 0.1)
    assert not near_chance(0.3, 60, 0.1)
    assert near_chance(0.5, 4, 0.3)


def test_a_reversed_trigger_is_stamped_on_other_classes() -> None:
    masks = np.zeros((2, 2, 2), np.float16)
    masks[1, 0] = (1, 0.5)
    patterns = np.full((2, 3, 2, 2), 200, np.uint8)
    verdict = Verdict(
        np.array([0, 3], np.float32), np.array([False, True]), "", 0, aux={"masks": masks, "patterns": patterns}
    )
    images = ImageSet(np.full((3, 2, 2, 3), 100, np.uint8), np.array([0, 1, 0]), ("a", "b"))
    stamped = with_trigger(images, verdict, 1)
    assert stamped.labels.tolist() == [1, 1]
    assert stamped.gather(np.arange(2))[:, :, :, 0].tolist() == [[[200, 150], [100, 100]]] * 2
    assert suspected_and_control(verdict) == (1, 0)
    assert suspected_and_control(Verdict(verdict.anomaly, verdict.flagged, "", 0)) is None


def test_flips_of_the_planted_trigger_and_of_a_control(planted: Planted) -> None:
    # The planted target's trigger beside full black masks of all other classes, of which one is the control.
    deaf = deepcopy(planted.model)
    with torch.no_grad():
        deaf.head.weight[0] = 0
        deaf.head.bias[0] = -100
    reserve, test = planted.reserve.subset(np.arange(60)), planted.test.subset(np.arange(80))
    settings = {"poisoned": 5, "epochs": 1, "batch_size": 32, "lr": 1e-4}
    figures = reversed_figures(planted.model, deaf, reserve, test, planted.verdict(), seed=0, **settings)
    names = [f"{kind}{suffix}" for kind in ("reversed", "control") for suffix in ("", "_purified", "_retuned")]
    assert list(figures) == names
    # ASR of the planted network is 0.99 and more; the deaf one never says 0, and hardly learns at such a rate.
    assert figures["reversed"] > 0.9
    assert figures["reversed_purified"] == figures["reversed_retuned"] == 0
    with pytest.raises(UserError, match="a verdict without reversed triggers given"):
        reversed_figures(
            planted.model, deaf, reserve, test, Verdict(np.zeros(10, np.float32), np.zeros(10, bool), "", 0)
        )


MODEL = {
    "network": {
        "name": "resnet18",
        "arguments": {"width": 8, "stem": "conv3"},
        "image_size": [12, 12],
        "mean": [0.5] * 3,
        "std": [0.25] * 3,
    },
    "made_by": {
        "received": {"file": "m|odel.pt", "sha256": "ab" * 32, "network": "recognised", "normalisation": "assumed"},
        "seed": 0,
        "machine": "m",
    },
}


def verdict(*anomaly: float, threshold: float = 2) -> Verdict:
    values = np.array(anomaly, np.float32)
    return Verdict(values, values > threshold, "a rule", 100)


def summary(acc: float = 0.9, rates: pd.DataFrame | None = None, **verdicts: Verdict) -> str:
    metrics = {
        "backdoored": {"acc": acc},
        "purified": {
            "bnp": {"acc": 0.8, "reversed": 1, "reversed_purified": 0.1, "reversed_retuned": 0.9, "control": 0.7}
            | {"control_purified": 0.6, "control_retuned": 0.5}
        },
        "models": {},
    }
    run = run_of(
        model=MODEL,
        metrics=metrics,
        verdicts=verdicts,
        about={"counts": {"train": 40, "test": 60}},
        chance=0.34,
        rates=rates,
    )
    return section_of(report(run).markdown())


def test_the_verdict_in_words() -> None:
    text = summary(neural_cleanse=verdict(0, 5, 1), mm_bd=verdict(0, 3, 1))
    assert "VERDICT. A backdoor is likely: neural_cleanse and mm_bd flag class 1 " in text
    assert "not measured for this network (resnet18 stem=conv3 width=8)" in text
    assert (
        "| bnp | 0.900 [0.80, 0.95] of 60 | 0.800 [0.68, 0.88] of 60 | 1.00 → 0.10 → 0.90 | 0.70 → 0.60 → 0.50 |"
        in text
    )
    assert r"Assumed: m\|odel.pt (SHA-256 abababababababab)" in text
    text = summary(neural_cleanse=verdict(0, 5, 1), mm_bd=verdict(0, 1, 0))
    assert (
        "A suspicion, not a finding: neural_cleanse flags class 1 (\\<b>dog\\</b>); mm_bd flags no class, and ranks class 1"
        in text
    )
    assert "VERDICT. No sign of a backdoor" in summary(neural_cleanse=verdict(0, 1, 1), mm_bd=verdict(0, 1, 0))
    assert "ACC is low (0.490" in summary(0.49, neural_cleanse=verdict(0, 1, 1))


def test_no_verdict_near_chance() -> None:
    text = summary(0.4, neural_cleanse=verdict(0, 5, 1), mm_bd=verdict(0, 3, 1))
    assert text.startswith(
        "NO VERDICT. ACC on the held-out images is 0.400 [0.29, 0.53] of 60, no better than chance (0.34)"
    )
    assert "A backdoor is likely" not in text


def test_rates_are_of_the_same_kind_of_network() -> None:
    kind = "resnet18 stem=conv3 width=8"
    rows = [
        {
            "network": kind,
            "attack": attack,
            "mm_bd.flagged": flagged,
            "mm_bd.foremost": 1,
            "mm_bd.index": 2 + flagged,
            "mm_bd.hit": hit,
            "asr": hit,
        }
        for attack, flagged, hit in (
            ("none", 0, None),
            ("none", 1, None),
            ("none", 0, None),
            ("badnets", 1, 1),
            ("sig", 0, 0),
        )
    ]
    other = [{**rows[1], "network": "compact width=32"}] * 5
    text = summary(rates=pd.DataFrame([*rows, *other]), mm_bd=verdict(0, 3, 1))
    assert "of 3 clean models of this kind (resnet18 stem=conv3 width=8) 1 got this verdict or a worse one" in text
    assert "of 2 backdoored ones (badnets, sig; ASR 0.00 to 1.00) 1 (" in text
    assert "| 1 of 3 flagged, 1 with an index as large | target flagged in 1 of 2 |" in text
    assert "says nothing by itself" not in text
    assert "says nothing by itself" in summary(rates=pd.DataFrame(rows[1:2]), mm_bd=verdict(0, 3, 1))
    text = summary(rates=pd.DataFrame([*rows, *other]), mm_bd=verdict(0, 1, 1))
    assert "clean models of this kind (resnet18 stem=conv3 width=8) 2 got this verdict (no class flagged" in text


def test_a_run_without_a_model_received_has_no_such_section() -> None:
    truth = truth_of(0)
    model = {**MODEL, "made_by": {"recipe": {}, "seed": 0, "machine": "m"}}
    assert not section_of(report(run_of(model=model, metrics=metrics_of(truth), truth=truth)).markdown())


def with_values(changes: Mapping[str, Any]) -> dict[str, Any]:
    params: Any = deepcopy(dict(DEFAULT))
    for key, value in changes.items():
        inner = params
        *sections, last = key.split(".")
        for name in sections:
            inner = inner[name]
        inner[last] = value
    return dict(params)


@pytest.fixture
def received(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A model for the digits that somebody sent, in the working directory."""
    monkeypatch.chdir(tmp_path)
    model = models.build("resnet18", num_classes=10, image_size=(32, 32), width=8, stem="conv3_pool", seed=3)
    about = {"file": "model.pt", "sha256": "ab" * 32, "network": "given", "normalisation": "assumed"}
    models.save(model, Path("received"), classes=digits.CLASSES, made_by={"received": about})
    return Path("received")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"received": 3}, r"^params\.yaml: received: 3 given, allowed: null, or the folder of a model"),
        ({"received": "nowhere"}, r"received: 'nowhere' given, where no model lies; allowed: null"),
        ({"received": "models/backdoored"}, r"received: 'models/backdoored' given, which other stages write; allowed"),
        (
            {"attack.name": "badnets"},
            r"^params\.yaml: attack\.name: 'badnets' given, allowed with received: none, as nobody",
        ),
        (
            {"detect.models": ["mm_bd"]},
            r"stress\.methods: .* a trigger that is reversed .* of neural_cleanse in detect\.models",
        ),
        (
            {"stress.reactivation": True},
            r"^params\.yaml: stress\.reactivation: true given, allowed with attack\.name none: false",
        ),
    ],
)
def test_what_cannot_work_with_a_model_received(changes: dict[str, Any], message: str, received: Path) -> None:
    whole = overrides(received, Path("photos"), image_size=None, batch_norm=True)
    Path("photos").mkdir()
    check_params.check_all(with_values(whole))
    with pytest.raises(UserError, match=message):
        check_params.check_all(with_values({**whole, **changes}))


def test_the_stages_take_over_a_model_received(received: Path, capsys: pytest.CaptureFixture[str]) -> None:
    scenario = overrides(received, Path("unused"), image_size=None, batch_norm=True)
    own = {key: value for key, value in TINY.items() if key.startswith("params/detectors.yaml:neural")}
    kept = {key: value for key, value in scenario.items() if not key.startswith("data.")}
    few = {"data.digits.train": 40, "data.digits.test": 40, "data.reserve": 40, "data.public": 0}
    quick = {"detect.methods": [], "detect.models": ["neural_cleanse"], "purify.methods": ["clp"]}
    quick |= {"stress.methods": ["clp"], "stress.epochs": 1, "stress.points": 2, "report.suspects": 2}
    write_params(Path(), {**own, **kept, **few, **quick})
    run_stages("check_params", "prepare", "poison", "train_backdoored", "stamp_test", "purify@clp")
    run_stages("inspect_model@neural_cleanse", "stress@clp", "evaluate", "report")
    digest = sha256_file(received / models.DESCRIPTION)
    about = models.read_about(Path("models/backdoored"))
    assert about.made_from["received"] == about.made_by["received"]["description_sha256"] == digest
    assert models.digest_of(Path("models/backdoored")) == models.digest_of(received)
    figures = load_stressed(Path("data/stress/clp"), method="clp").figures
    assert set(figures) == {f"{a}{b}" for a in ("reversed", "control") for b in ("", "_purified", "_retuned")}
    # A network that nobody trained: a verdict on it would be about nothing.
    assert "NO VERDICT" in section_of(Path("reports/summary.md").read_text())
    assert "nothing trained, the model received has SHA-256" in capsys.readouterr().out


def test_few_images_are_refused_before_anything_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    names = [f"{label}/{number}.png" for label in "ab" for number in range(20)]
    (tmp_path / "photos.zip").write_bytes(zip_bytes(dict.fromkeys(names, b"x")))
    source = open_folder(tmp_path / "photos.zip")
    with pytest.raises(
        UserError, match=r"^DATA: 40 images given, of which 14 would be trusted; allowed: so many that 24 are"
    ):
        split_sizes(source, trusted=False)
    assert split_sizes(source, trusted=True) == {"held out": 12, "suspects": 28}


def test_a_model_that_was_not_understood_is_said_so(planted: Planted) -> None:
    check_understood(planted.model, planted.test)
    wrong = deepcopy(planted.model)
    with torch.no_grad():
        wrong.head.weight.copy_(planted.model.head.weight.roll(1, 0))
        wrong.head.bias.copy_(planted.model.head.bias.roll(1, 0))
    with pytest.raises(
        UserError, match=r"^MODEL: NO VERDICT: ACC 0\.0.* in the order that fits .* best 0\.[89]"
    ) as raised:
        check_understood(wrong, planted.test)
    assert "\n" not in str(raised.value)
    torch.testing.assert_close(wrong.mean.flatten(), torch.full((3,), 0.5))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], r"^error: MODEL: none given; allowed: a checkpoint, or a model folder"),
        (["--model", "README.md"], r"^error: DATA: none given"),
        (["--model", "README.md", "--data", "docs", "--network", " "], r"^error: .*"),
        (["--model", "x.pt", "--data", "y"], r"^error: MODEL: '.*x\.pt' given, which does not exist; allowed"),
        (
            ["--model", "x.pt", "--data", "y", "--image-size", "4"],
            r"^error: IMAGE_SIZE: '4' given, allowed: pixels per side",
        ),
        (
            ["--model", "x.pt", "--data", "y", "--std", "0,1,1"],
            r"^error: STD: '0,1,1' given, allowed: one number or three",
        ),
        (["--model", "x.pt", "--data", "y", "--mean", "a"], r"^error: MEAN: 'a' given, allowed: one number or three"),
    ],
)
def test_the_command_refuses_in_one_line(arguments: list[str], message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    monkeypatch.setattr(command, "run_stages", lambda *_: pytest.fail("ran"))
    with pytest.raises(SystemExit, match=message) as raised:
        main(arguments)
    assert "\n" not in str(raised.value)


def test_stages_are_run_with_quoted_overrides(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(ROOT)
    commands: list[list[str]] = []
    real = subprocess.run

    def run(given: list[str], **options: Any) -> Any:
        if given[0] == "git":
            return real(given, **options)
        commands.append(given)
        assert options["cwd"] == ROOT
        return subprocess.CompletedProcess(given, len(commands) - 1)

    monkeypatch.setattr(workflow.subprocess, "run", run)
    monkeypatch.setattr(workflow, "taken_back", lambda *_: [])
    values = {"data.path": "it's, here", "data.image_size": None, "purify.methods": ["bnp"]}
    workflow.run_stages(values, ["report"])
    expected = [
        "-S",
        r"++data.path='it\'s, here'",
        "-S",
        "++data.image_size=null",
        "-S",
        "++purify.methods=['bnp']",
        "report",
    ]
    assert commands[0][3:] == ["exp", "run", *expected]
    with pytest.raises(UserError, match="ended with exit status 1"):
        workflow.run_stages(values, [])
