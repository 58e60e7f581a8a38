"""`unpoison.api`: the examples of docs/library.md on small data, its results against the pieces below it, and what it refuses."""

from __future__ import annotations

import ast
import importlib.util
import inspect
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch

from planted import Planted
from small_networks import strided
from small_poison import CLASSES, split_of
from unpoison import api
from unpoison.core.errors import UserError
from unpoison.core.seeding import derive
from unpoison.data.imageset import ImageSet
from unpoison.data.scores import Scores
from unpoison.training.loop import fit

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "library.md"
SIZES = {"train": 60, "test": 15, "trusted": 20, "public": 10}
NETWORK, RECIPE = {"name": "resnet18", "width": 8, "stem": "conv3_pool"}, {"epochs": 1, "batch_size": 32}


def load_examples() -> ModuleType:
    spec = importlib.util.spec_from_file_location("examples", ROOT / "bench" / "examples.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


examples = load_examples()


def small_set(samples: int, seed: int) -> ImageSet:
    return api.image_set(*split_of(samples, seed), CLASSES)


def tiny_set(samples: int) -> ImageSet:
    """Noise of 8 px in three classes, which every method of the page takes and none has a use for."""
    images = np.random.default_rng(samples).integers(0, 256, (samples, 8, 8, 3), dtype=np.uint8)
    return api.image_set(images, np.arange(samples) % 3, ["a", "b", "c"])


@pytest.fixture(scope="module")
def train() -> ImageSet:
    return small_set(60, 1)


@pytest.fixture(scope="module")
def trusted() -> ImageSet:
    return small_set(50, 2)


class TestThePage:
    def test_every_block_runs(self, capsys: pytest.CaptureFixture[str]) -> None:
        first, *others = examples.examples_of(PAGE)
        names: dict[str, Any] = {
            "api": api,
            **{name: tiny_set(samples) for name, samples in SIZES.items()},
            **{"network": NETWORK, "recipe": RECIPE, "prior_recipe": {"steps": 1, "channels": [8, 8]}},
        }
        # What stands in here for the first block defines all that it does.
        tree = ast.walk(ast.parse(first))
        made = {node.id for node in tree if isinstance(node, ast.Name) and isinstance(node.ctx, ast.Store)}
        assert made - {"parts", "part"} < set(names)
        examples.run(PAGE, names, others)
        printed = capsys.readouterr().out.splitlines()
        assert len(printed) == sum(block.count("print(") for block in others)
        # Read back from disk it is the same model.
        assert printed[-1] == printed[3]
        assert set(ast.literal_eval(printed[0])) >= {"acc", "asr", "ra"}
        assert len(names["varied"]) == 60
        assert names["student"](torch.zeros(1, 3, 8, 8)).shape == (1, 3)

    def test_an_error_has_the_line_of_the_page(self, tmp_path: Path) -> None:
        page = tmp_path / "page.md"
        page.write_text("A text.\n\n```python\nx = 1\n```\n\n```sh\nfalse\n```\n\n```python\nx / 0\n```\n")
        blocks = examples.examples_of(page)
        assert [block.strip() for block in blocks] == ["x = 1", "x / 0"]
        with pytest.raises(ZeroDivisionError) as caught:
            examples.run(page, {}, blocks)
        assert caught.traceback[-1].lineno + 1 == 12

    def test_every_function_is_shown(self) -> None:
        functions = {name for name in api.__all__ if inspect.isfunction(getattr(api, name))}
        text = PAGE.read_text(encoding="utf-8")
        # The control of a clean set is the one that no example needs.
        assert {name for name in functions if f"api.{name}(" not in text} == {"train"}


class TestAgainstThePieces:
    def test_a_poisoned_set_is_that_of_the_pipeline(self, planted: Planted, splits: dict[str, ImageSet]) -> None:
        policy = {"poison_rate": 0.03, "target": "0"}
        attack = api.poison(splits["train"], "badnets", policy=policy, pattern="checkerboard", size=8)
        received, index = attack.received(splits["train"]), np.flatnonzero(attack.truth.mask)
        assert np.array_equal(attack.truth.mask, planted.poisoned.truth.mask)
        assert np.array_equal(received.labels, planted.data.labels)
        assert np.array_equal(received.gather(index), planted.data.gather(index))

    def test_figures_are_those_of_grading(self, planted: Planted) -> None:
        figures = api.evaluate(planted.model, planted.test, planted.poisoned)
        assert figures["acc"] == pytest.approx(planted.acc(planted.model), abs=1e-6)
        assert figures["asr"] == pytest.approx(planted.asr(planted.model), abs=1e-6)
        assert all(type(value) is float for value in figures.values())
        assert set(api.evaluate(planted.model, planted.test)) == {"acc"}

    def test_scores_by_hand(self, train: ImageSet) -> None:
        attack = api.poison(train, "badnets", policy={"poison_count": 5})
        values = np.where(attack.truth.mask, 1.0, 0.0).astype(np.float32)
        assert api.grade(Scores(values, 0), attack)["auroc"] == 1.0
        assert api.grade(Scores(-values, 0), attack)["auroc"] == 0.0
        # Half of them first, the others behind all 55 clean ones: pairs in order are 2 of 5.
        found = np.flatnonzero(attack.truth.mask)
        values[found[2:]] = -1
        assert api.grade(Scores(values, 0), attack)["auroc"] == pytest.approx(2 / 5)

    def test_a_victim_has_the_weights_of_the_stage(self, train: ImageSet) -> None:
        attack = api.poison(train, "badnets", seed=3)
        victim, same = api.train_victim(attack, train, NETWORK, RECIPE, seed=3)
        assert same is attack
        received = attack.received(train)
        about = {"num_classes": 10, "image_size": 16, "seed": derive(3, "backdoored/weights")}
        expected = api.models.build(**NETWORK, **about)
        fit(expected, received, api.recipe_named(RECIPE), seed=3, what="backdoored")
        for name, value in expected.state_dict().items():
            assert torch.equal(value, victim.state_dict()[name]), name
        control = api.train(train, NETWORK, RECIPE, seed=3)
        assert not torch.equal(control.head.weight, victim.head.weight)

    def test_a_hand_in_training_stamps_there(self, train: ImageSet) -> None:
        attack = api.poison(train, "badnets", policy={"poison_first": False, "poison_rate": 0.5})
        assert attack.truth.in_training
        victim, after = api.train_victim(attack, train, NETWORK, RECIPE)
        # The same seed without the stamps, on the same images.
        plain = api.models.build(**NETWORK, num_classes=10, image_size=16, seed=derive(0, "backdoored/weights"))
        fit(plain, train, api.recipe_named(RECIPE), seed=0, what="backdoored")
        assert not torch.equal(plain.head.weight, victim.head.weight)
        assert len(after.triggers) == 1

    def test_a_plan_of_several_triggers(self, train: ImageSet) -> None:
        blocks = [{"attack": "badnets", "target": "b", "size": 4}, {"attack": "blended", "target": 2}]
        attack = api.poison(train, "multi", policy={"poison_rate": 0.4}, triggers=blocks)
        assert [part.policy.target for part in attack.truth.parts] == [1, 2]
        assert {*attack.truth.names} == {"0_badnets", "1_blended"}

    def test_by_a_verdict(self, planted: Planted) -> None:
        own = {"by": planted.verdict(), "epochs": 1}
        purified = api.purify(planted.model, planted.reserve.subset(np.arange(30)), "nc_unlearn", **own)
        assert not torch.equal(purified.head.weight, planted.model.head.weight)


def methods_with_arguments() -> dict[Any, list[Any]]:
    """The functions of a family, and the functions whose arguments they pass on."""
    return {
        api.poison: [method.make for method in api.ATTACKS.values() if hasattr(method, "make")],
        api.detect: [method.score for method in api.DETECTORS.values()],
        api.inspect: [method.inspect for method in api.INSPECTORS.values()],
        api.purify: [method.purify for method in api.PURIFIERS.values()],
        api.train_robust: [method.train for method in api.ROBUST.values()],
        api.vary: [method.vary for method in api.VARIATIONS.values() if method.pipeline is None],
    }


@pytest.mark.parametrize("function", methods_with_arguments(), ids=lambda function: function.__name__)
def test_no_method_has_an_argument_of_the_same_name(function: Any) -> None:
    # It could not be given.
    taken = set(inspect.signature(function).parameters) - {"seed", "own"}
    for method in methods_with_arguments()[function]:
        own = {name for name, one in inspect.signature(method).parameters.items() if one.kind is one.KEYWORD_ONLY}
        assert not taken & own, method


IMAGES, LABELS = split_of(20, 0)


@pytest.mark.parametrize(
    ("images", "labels", "classes", "said"),
    [
        (IMAGES / 255, LABELS, CLASSES, r"^images: float64 \[20, 16, 16, 3\] given, allowed: uint8"),
        (IMAGES[0], LABELS, CLASSES, r"^images: uint8 \[16, 16, 3\] given"),
        (IMAGES.transpose(0, 3, 1, 2), LABELS, CLASSES, r"^images: uint8 \[20, 3, 16, 16\] given"),
        (IMAGES[..., :2], LABELS, CLASSES, r"^images: .* of 1 or 3 channels$"),
        (IMAGES[:0], LABELS[:0], CLASSES, r"^images: uint8 \[0, 16, 16, 3\] given"),
        (IMAGES, LABELS[:19], CLASSES, r"^labels: int64 \[19\] given, allowed: whole numbers \[20\]"),
        (IMAGES, LABELS * 1.0, CLASSES, r"^labels: float64 \[20\] given, allowed: whole numbers"),
        (IMAGES, LABELS + 1, CLASSES, r"^labels: 1 to 10 given, allowed: 0 to 9"),
        (IMAGES, LABELS - 1, CLASSES, r"^labels: -1 to 8 given, allowed: 0 to 9"),
        (IMAGES, LABELS, [], r"^labels: 0 to 9 given, allowed: 0 to -1"),
        (IMAGES, LABELS, "abcdefghij", r"^classes: 'abcdefghij' given, allowed: a list of texts"),
        (IMAGES, LABELS, ["a"] * 10, r"^classes: .* allowed: a list of texts, each once"),
        (IMAGES, LABELS, list(range(10)), r"^classes: .* allowed: a list of texts"),
    ],
)
def test_images_that_are_none(images: Any, labels: Any, classes: Any, said: str) -> None:
    with pytest.raises(UserError, match=said):
        api.image_set(images, labels, classes)


def test_numbers_of_any_whole_type_are_labels() -> None:
    data = api.image_set(IMAGES, LABELS.astype(np.uint8), list(CLASSES))
    assert data.labels.dtype == np.int64
    assert data.classes == CLASSES


@pytest.mark.parametrize(
    ("call", "said"),
    [
        (lambda t, m: api.poison(t, "badnet"), r"^attack: 'badnet' given, allowed: none, badnets, "),
        (lambda t, m: api.poison(t, "none"), r"^attack: none given, allowed of images: badnets, "),
        (lambda t, m: api.poison(t, "badnl"), r"^attack: badnl given, allowed of images: badnets, "),
        (lambda t, m: api.poison(t, "badnets", size=40), r"^badnets\.size: 40 given, allowed: 1 to 16"),
        (lambda t, m: api.poison(t, "badnets", sizes=4), r"^badnets\.sizes: unknown key, allowed: "),
        (lambda t, m: api.poison(t, "badnets", policy={"target": "z"}), r"^target: 'z' given"),
        (lambda t, m: api.poison(t, "badnets", policy={"poison_rate": float("nan")}), r"^poison_rate: nan given"),
        (lambda t, m: api.poison(t, "badnets", seed=1.0), r"^seed: 1\.0 given, allowed: a whole number from 0"),
        (lambda t, m: api.poison(t, "badnets", seed=True), r"^seed: True given"),
        (lambda t, m: api.train(t, "resnet19"), r"^network\.name: 'resnet19' given, allowed: "),
        (lambda t, m: api.train(t, {"name": "resnet18", "width": 1}), r"^network\.width: 1 given"),
        (lambda t, m: api.train(t, NETWORK, "defaults"), r"^recipe\.recipe: 'defaults' given, allowed: "),
        (lambda t, m: api.train(t, NETWORK, {"epochs": 0}), r"^recipe\.epochs: 0 given"),
        (lambda t, m: api.train(t, NETWORK, {"epochs": 1, "lr": 1e30}), r"^recipe\.lr: 1e\+30 given, with which"),
        (
            lambda t, m: api.evaluate(m, t),
            r"^test: images of 16x16 px, 3 channels given, allowed with this model: 32x32",
        ),
        (lambda t, m: api.suspect(m, t, t), r"^data: images of 16x16 px"),
        (lambda t, m: api.inspect(m, t, "mm_bd"), r"^trusted: images of 16x16 px"),
        (lambda t, m: api.purify(m, t, "fst"), r"^trusted: images of 16x16 px"),
        (lambda t, m: api.purify(m, t, "fsst"), r"^method: 'fsst' given, allowed: ft, "),
        (lambda t, m: api.train_robust(t, t, "pdb", NETWORK, size=40), r"^pdb\.size: 40 given"),
        (lambda t, m: api.train_robust(t, t, "pdb", NETWORK, "smal"), r"^recipe\.recipe: 'smal' given"),
        (lambda t, m: api.train_robust(t, t, "pdb", NETWORK, public=t), r"^public: one given, allowed with pdb: none"),
        (
            lambda t, m: api.train_robust(t, t, "distillation", NETWORK, variations=t, public=t),
            r"^backdoored: none given, allowed with distillation, which trains on it: one",
        ),
        (
            lambda t, m: api.train_robust(t, t, "dst", NETWORK),
            r"^by: none given, allowed with dst: what `scored` gives",
        ),
        (lambda t, m: api.train_robust(t, t, "gradient_shaping", NETWORK, RECIPE), r"batch norm"),
        (lambda t, m: api.prior(t, steps=0), r"^steps: 0 given"),
        (lambda t, m: api.prior(t, step=10), r"^step: unknown key, allowed: steps, "),
        (lambda t, m: api.vary(t, None, "unclip"), r"^method: unclip given, which takes weights from elsewhere; "),
        (lambda t, m: api.vary(t, None, num_variations=0), r"^num_variations: 0 given"),
        (lambda t, m: api.vary(t, None, strength=2.0), r"^sdedit\.strength: 2\.0 given"),
    ],
)
def test_what_is_refused(call: Any, said: str, train: ImageSet) -> None:
    with pytest.raises(UserError, match=said):
        call(train, strided([8], seed=0))


def test_what_belongs_to_other_data_is_refused(planted: Planted, train: ImageSet, trusted: ImageSet) -> None:
    attack = api.poison(train, "badnets")
    with pytest.raises(
        UserError, match=r"^train: 50 images with other labels given, allowed: the set that was poisoned"
    ):
        api.train_victim(attack, trusted, NETWORK, RECIPE)
    with pytest.raises(UserError, match=r"^scores: of 50 samples given, allowed: of the 60 that were poisoned"):
        api.grade(Scores(np.arange(50, dtype=np.float32), 0), attack)
    handed = api.poison(train, "blind", pattern="checkerboard")
    with pytest.raises(UserError, match=r"^attack: blind given, allowed: one that poisons a data set"):
        api.grade(Scores(np.arange(60, dtype=np.float32), 0), handed)
    few = ImageSet(planted.reserve.gather(np.arange(5)), planted.reserve.labels[:5], planted.reserve.classes)
    suspect = api.suspect(planted.model, few, few)
    with pytest.raises(UserError, match=r"^trusted: 5 images given, allowed: at least \d+, scan needs them"):
        api.detect(suspect, "scan")
    with pytest.raises(UserError, match=r"^method: onion given, allowed of images: cd, "):
        api.detect(suspect, "onion")
    with pytest.raises(UserError, match=r"^by: a Scored given, allowed with nc_unlearn: what `inspect` gives"):
        api.purify(planted.model, few, "nc_unlearn", by=planted.scored())
    with pytest.raises(UserError, match=r"^by: given, allowed with fst: none"):
        api.purify(planted.model, few, "fst", by=planted.scored())
    two = ImageSet(few.gather(np.arange(5)), np.zeros(5, np.int64), ("a", "b"))
    with pytest.raises(UserError, match=r"^test: 2 classes given, allowed with this model: 10"):
        api.evaluate(planted.model, two)
