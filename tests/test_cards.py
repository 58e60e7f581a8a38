"""Cards: what the hub's own reader finds in them, what is said of data of unknown origin, names that may hold anything."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from huggingface_hub import DatasetCard, ModelCard

from report_runs import ABOUT, DATA, MODEL, metrics_of, run_of, scores_of, truth_of
from unpoison.data.imageset import ImageSet
from unpoison.reporting.cards import DATA as DATA_CARD
from unpoison.reporting.cards import KNOWN, UNKNOWN, cards
from unpoison.reporting.sections import report

DESCRIBED: dict[str, Any] = {
    "network": {"name": "resnet18", "arguments": {"width": 8}},
    "made_by": {"parameters": {"epochs": 3}, "seed": 3, "machine": "a machine"},
    "files": {"model.safetensors": "ab" * 32},
    "made_from": {"backdoored": "cd" * 32},
}
FIGURES = {"acc": 0.91, "acc_without_target": 0.9, "asr": 0.02, "ra": 0.85}
NAMES = {"purified: ft": DESCRIBED, "robust: pdb": DESCRIBED, "student": DESCRIBED, "purified: not graded": DESCRIBED}


def graded(truth: Any = None) -> Any:
    metrics = metrics_of(truth) if truth is not None else {}
    return {**metrics, "student": FIGURES, "purified": {"ft": FIGURES}, "robust": {"pdb": FIGURES}}


def test_every_graded_model_of_a_defence_has_a_card_that_the_hub_reads() -> None:
    truth = truth_of(0)
    found = cards(run_of(truth=truth, metrics=graded(truth), defended=NAMES, scores=scores_of(1, flagged=truth.mask)))
    assert set(found) == {DATA_CARD, "purified-ft.md", "robust-pdb.md", "student.md"}
    card = ModelCard(found["purified-ft.md"])
    results = {one.metric_type: one.metric_value for one in card.data.eval_results or []}
    assert results == {"accuracy": 0.91, "attack_success_rate": 0.02, "robust_accuracy": 0.85}
    assert "purified by ft with the 0 images of the reserve" in card.text
    assert "| attack success rate | 0.020 | 8 |" in card.text
    assert "| accuracy | 0.910 | 12 |" in card.text
    assert "ab" * 32 in card.text
    assert KNOWN in card.text
    assert UNKNOWN not in card.text
    data = DatasetCard(found[DATA_CARD])
    assert data.data.to_dict()["pretty_name"] == "pets"
    assert f"{int(truth.mask.sum())} of {len(DATA)} samples were poisoned here" in data.text
    assert f"| flagged by detector0 | {int(truth.mask.sum())} |" in data.text


def test_what_a_private_training_spent_is_said() -> None:
    recipe, spent = (
        {"epochs": 2, "privacy": {"noise": 1.5}},
        {"epsilon": 3.0361, "delta": 1e-4, "noise": 1.5, "clip": 1.0},
    )
    private = {**DESCRIBED, "made_by": {**DESCRIBED["made_by"], "recipe": recipe, "privacy": spent}}
    truth, defended = truth_of(0), {"robust: pdb": private, "student": DESCRIBED}
    run = run_of(truth=truth, metrics=graded(truth), defended=defended, model=MODEL)
    said = "epsilon 3.036 at delta 0.0001, by DP-SGD with noise 1.5 and clip 1, of this model alone"
    assert f"| recipe | epochs 2 |\n| privacy | {said} |" in cards(run)["robust-pdb.md"]
    assert "privacy" not in cards(run)["student.md"]
    page = report(run).markdown()
    assert f"| privacy of robust: pdb | {said} |" in page
    assert "| privacy |" not in page
    victim = {**MODEL, "made_by": {**MODEL["made_by"], "privacy": spent}}
    assert f"| privacy | {said} |" in report(replace(run, model=victim)).markdown()


def test_of_unknown_origin_only_accuracy_is_said() -> None:
    only_accuracy = {"student": {"acc": 0.9, "acc_without_target": None, "asr": None, "ra": None}}
    found = cards(run_of(metrics=only_accuracy, defended=NAMES))
    assert set(found) == {DATA_CARD, "student.md"}
    card = ModelCard(found["student.md"])
    assert [one.metric_type for one in card.data.eval_results or []] == ["accuracy"]
    assert UNKNOWN in card.text
    assert KNOWN not in card.text
    assert "for research" not in card.text
    assert "| data | pets (a\\|folder)" in card.text
    assert "Nothing, or nothing has looked" in found[DATA_CARD]
    # A run without a graded model has a card of its data alone.
    assert set(cards(run_of(defended=NAMES))) == {DATA_CARD}


def test_names_that_may_hold_anything() -> None:
    name = "x\n---\nlicense: mit\n# <b>|"
    run = run_of(metrics=graded(truth_of(0)), truth=truth_of(0), defended={"student": DESCRIBED})
    run = replace(
        run,
        data=ImageSet(DATA.base, DATA.labels, (name, *DATA.classes[1:])),
        about={**ABOUT, "name": name, "source": name},
    )
    found = cards(run)
    for text, kind in ((found["student.md"], ModelCard), (found[DATA_CARD], DatasetCard)):
        card = kind(text)
        assert "license" not in card.data.to_dict()
        assert "<b>" not in card.text.replace("\\<b\\>", "").replace("\\<b>", "")
        assert "\nlicense: mit" not in text
