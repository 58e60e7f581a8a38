"""Figures of the models: what they compute against values by hand, their files, and what they leave out."""

from __future__ import annotations

import csv
import io
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from report_runs import run_of
from unpoison import models
from unpoison.compute import inference
from unpoison.core.errors import ParameterError, UserError
from unpoison.core.files import read_json, write_json
from unpoison.data.drawings import Drawing, Picture, load_drawing, save_drawing
from unpoison.data.imageset import ImageSet, Overlay
from unpoison.models.classifier import Backbone, Classifier, GlobalAverage
from unpoison.poisoning.triggered import Triggered
from unpoison.purification.maps import LAST
from unpoison.reporting import figures
from unpoison.reporting.sections import report
from unpoison.visualisation import FIGURES, activation, frequency, landscape
from unpoison.visualisation import grad_cam as grad_cam_module
from unpoison.visualisation.activation import changes
from unpoison.visualisation.confusion import counts
from unpoison.visualisation.embedding import neighbours, principal
from unpoison.visualisation.figure import Pairs, Scene, csv_of
from unpoison.visualisation.frequency import BANDS, bands, spectrum
from unpoison.visualisation.grad_cam import grad_cam, share_on, stage_of
from unpoison.visualisation.landscape import direction, surface
from unpoison.visualisation.neurons import class_means, ordered

CLASSES = ("cat", "<b>dog</b>", "=eel")
SMALL: dict[str, dict[str, Any]] = {
    "embedding": {"samples": 12, "perplexity": 3.0},
    "grad_cam": {"images": 2, "side": 2},
    "activation": {"images": 8},
    "landscape": {"images": 4, "points": 3},
    "frequency": {"images": 8},
}


def network(body: nn.Module, head: nn.Linear, *, side: int = 4, channels: int = 1) -> Classifier:
    """A classifier of images as they are, without normalisation."""
    description = {
        "name": "by hand",
        "arguments": {},
        "num_classes": head.out_features,
        "image_size": [side, side],
        "channels": channels,
        "mean": [0.0] * channels,
        "std": [1.0] * channels,
    }
    return Classifier(Backbone(body, GlobalAverage()), head, description).eval()


def conv(weights: list[float], channels: int = 1) -> nn.Conv2d:
    """A 1x1 convolution that gives the first channel times each weight."""
    layer = nn.Conv2d(channels, len(weights), 1, bias=False)
    layer.weight.data.zero_()
    layer.weight.data[:, 0, 0, 0] = torch.tensor(weights)
    return layer


def linear(weights: list[list[float]]) -> nn.Linear:
    layer = nn.Linear(len(weights[0]), len(weights))
    layer.weight.data, layer.bias.data = torch.tensor(weights), torch.zeros(len(weights))
    return layer


def scene_of(*, trigger: bool = True, test: int = 18, poisoned: bool = True, models_drawn: int = 2) -> Scene:
    """Random images of three classes, white triggers in a corner, and a small network."""
    rng = np.random.default_rng(0)
    images = rng.integers(0, 200, (60, 16, 16, 3), dtype=np.uint8)
    data = ImageSet(images, np.arange(60) % 3, CLASSES)
    clean = ImageSet(images[:test], np.arange(test) % 3, CLASSES)
    index = np.flatnonzero(clean.labels != 0)
    stamped = images[index].copy()
    stamped[:, -3:, -3:] = 255
    triggered = {"badnets": Triggered(clean, Overlay(index, stamped, np.zeros(len(index), np.int64)))}
    model = models.build("resnet18", num_classes=3, image_size=16, width=8, stem="conv3", seed=1)
    both = {"backdoored": model.eval(), "purified: ft": models.fresh_copy(model, seed=2).eval()}
    mask = np.arange(60) % 5 == 1
    return Scene(
        models=dict(list(both.items())[:models_drawn]),
        data=data,
        poisoned=mask if poisoned else None,
        test=clean,
        triggered=triggered if trigger else {},
    )


def drawn(name: str, scene: Scene, seed: int = 0) -> Drawing:
    figure = FIGURES[name]
    return figure.draw(scene, **({"seed": seed} if figure.seeded else {}), **SMALL.get(name, {}))


def rows_of(drawing: Drawing, name: str) -> list[dict[str, str]]:
    return list(csv.DictReader(io.StringIO(drawing.tables[name])))


@pytest.fixture(scope="module")
def scene() -> Scene:
    return scene_of()


@pytest.fixture(scope="module")
def blank() -> Iterator[None]:
    """No picture is made: that takes most of the time, and no part in what is said and counted."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(figures, "png_of", lambda figure: b"picture")
        yield


@pytest.fixture(scope="module")
def made(scene: Scene, blank: None) -> dict[str, Drawing]:
    """All figures of two models, without their pictures; the models stay as they were."""
    before = [{name: weight.clone() for name, weight in model.state_dict().items()} for model in scene.models.values()]
    drawings = {name: drawn(name, scene) for name in FIGURES}
    for model, weights in zip(scene.models.values(), before, strict=True):
        assert all(torch.equal(weight, weights[name]) for name, weight in model.state_dict().items())
    return drawings


# Values by hand.


def test_a_confusion_matrix_counts_true_down_and_predicted_across() -> None:
    found = counts(np.array([0, 0, 1, 2, 2, 2]), np.array([0, 1, 1, 0, 0, 2]), 3)
    assert found.tolist() == [[1, 1, 0], [0, 1, 0], [2, 0, 1]]
    assert counts(np.zeros(0, np.int64), np.zeros(0, np.int64), 2).tolist() == [[0, 0], [0, 0]]


def test_the_matrix_of_a_network_by_hand(scene: Scene) -> None:
    # Its logits are minus, one and twice the mean of the one channel: a bright image is the third class, a black one the first.
    model = network(conv([1.0]), linear([[-1.0], [1.0], [2.0]]))
    model.head.bias.data = torch.tensor([0.1, 0.0, 0.0])
    images = np.zeros((4, 4, 4, 1), np.uint8)
    images[1:3] = 200
    test = ImageSet(images, np.array([0, 1, 2, 1]), CLASSES)
    stamped = np.full((1, 4, 4, 1), 255, np.uint8)
    triggered = {"a": Triggered(test, Overlay(np.array([3]), stamped, np.array([0])))}
    by_hand = Scene(models={"backdoored": model}, data=test, poisoned=None, test=test, triggered=triggered)
    rows = [tuple(row.values()) for row in rows_of(FIGURES["confusion"].draw(by_hand), "backdoored")]
    dog, eel = "<b>dog</b>", "'=eel"
    assert rows == [
        ("clean", "cat", "cat", "1"),
        ("clean", dog, "cat", "1"),
        ("clean", dog, eel, "1"),
        ("clean", eel, eel, "1"),
        ("triggered", dog, eel, "1"),
    ]


@pytest.mark.parametrize(("row", "column"), [(0, 3), (5, 0), (2, 7)])
def test_the_spectrum_of_a_wave_is_one_coefficient(row: int, column: int) -> None:
    # A basis function of the DCT-II of 8x8 pixels, of norm 1, times 50.
    places = (2 * np.arange(8) + 1) * np.pi / 16
    scale = [np.sqrt(1 / 8) if k == 0 else np.sqrt(2 / 8) for k in (row, column)]
    wave = 50 * scale[0] * scale[1] * np.outer(np.cos(row * places), np.cos(column * places))
    found = spectrum(np.broadcast_to(wave[None, :, :, None], (2, 8, 8, 3)))
    expected = np.zeros((8, 8))
    expected[row, column] = np.log(51)
    assert np.allclose(found, expected, atol=1e-9)


def test_bands_are_means_over_rings() -> None:
    values = np.zeros((4, 4))
    values[0, 0], values[3, 3] = 5.0, 7.0
    found = bands(values)
    # Radii are k / 4 of an axis, of sqrt(2) at most: the corners lie alone in the bands 0 and 12.
    assert len(found) == BANDS
    assert (found[0], found[12]) == (5.0, 7.0)
    assert np.isnan(found[1])
    assert np.nansum(found) == 12.0


def test_grad_cam_of_one_linear_channel() -> None:
    # The map is twice the image, the weight of its channel the logit's slope, 3 / 4 for each of 2x2 positions over 4.
    model = network(conv([2.0]), linear([[3.0], [-3.0]]), side=2)
    image = torch.tensor([[0.25, -0.5], [1.0, 0.0]]).view(1, 1, 2, 2)
    heat, labels = grad_cam(model, image, LAST)
    assert labels.tolist() == [0]
    assert heat.tolist() == [[[0.25, 0.0], [1.0, 0.0]]]
    # What speaks for the other label is what is below 0.
    heat, labels = grad_cam(model, image, LAST, torch.tensor([1]))
    assert labels.tolist() == [1]
    assert heat.tolist() == [[[0.0, 1.0], [0.0, 0.0]]]
    # Nothing speaks for a label: the map is empty, and no division is tried.
    heat, _ = grad_cam(model, -image.abs(), LAST, torch.tensor([0]))
    assert heat.abs().sum() == 0


def test_grad_cam_weighs_channels_by_their_mean_gradient() -> None:
    model = network(conv([1.0, -1.0]), linear([[1.0, 4.0], [0.0, 0.0]]), side=2)
    image = torch.tensor([[0.2, 0.4], [0.0, -0.8]]).view(1, 1, 2, 2)
    # 1/4 (x - 4 x) = -3/4 x: bright where the image is below 0.
    heat, _ = grad_cam(model, image, LAST, torch.tensor([0]))
    assert heat.tolist() == [[[0.0, 0.0], [0.0, 1.0]]]


def test_grad_cam_takes_the_last_map_of_enough_positions(scene: Scene) -> None:
    model = scene.models["backdoored"]
    # 16, 8, 4 and 2 positions a side.
    assert [stage_of(model, (16, 16), side, "it") for side in (1, 2, 3, 4, 5, 99)] == [LAST, LAST, "8", "8", "6", "4"]
    images = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0)).expand(3, -1, -1, -1)
    heat, _ = grad_cam(model, images, "8", torch.arange(3))
    assert heat.shape == (3, 16, 16)
    # What speaks for one label speaks against another, for which nothing may be left.
    assert set(heat.amax((1, 2)).tolist()) <= {0.0, 1.0}
    assert heat.max() == 1.0
    flat = network(nn.AdaptiveAvgPool2d(1), linear([[1.0], [2.0]]))
    with pytest.raises(UserError, match=r"^it: its last feature map has one position, allowed"):
        stage_of(flat, (4, 4), 1, "it")


@pytest.mark.parametrize("name", ["torchvision:mobilenet_v3_small", "torchvision:vit_b_16"])
def test_grad_cam_of_networks_from_elsewhere(name: str) -> None:
    if "vit" in name:
        # A transformer of the same shape, small: tokens for a map, and no map on the way.
        from torchvision.models.vision_transformer import VisionTransformer

        from unpoison.models.torchvision_networks import TokenBackbone, Tokens

        small = VisionTransformer(32, 8, 1, 2, 16, 32, num_classes=3)
        about = {"name": name, "image_size": [32, 32], "channels": 3, "mean": [0.5] * 3, "std": [0.5] * 3}
        nn.init.normal_(small.heads.head.weight)
        model = Classifier(TokenBackbone(Tokens(small)), small.heads.head, about).eval()
    else:
        model = models.build(name, num_classes=3, image_size=32).eval()
    stage = stage_of(model, (32, 32), 4, name)
    heat, _ = grad_cam(model, torch.rand(2, 3, 32, 32, generator=torch.Generator().manual_seed(0)), stage)
    assert heat.shape == (2, 32, 32)
    assert heat.isfinite().all()
    assert ((heat >= 0) & (heat <= 1)).all()


def test_the_share_of_a_map_on_a_mask() -> None:
    heat = np.array([[[0.5, 1.0], [0.5, 0.0]], [[0.0, 0.0], [0.0, 0.0]]], np.float32)
    mask = np.array([[[True, False], [True, False]]] * 2)
    assert share_on(heat, mask).tolist() == [0.5, 0.0]


def test_directions_have_the_norms_of_the_filters(scene: Scene) -> None:
    model = scene.models["backdoored"]
    first, second = (direction(model, 0, which) for which in ("first", "second"))
    weights = dict(model.named_parameters())
    assert set(first) == {name for name, weight in weights.items() if weight.ndim > 1}
    assert "head.weight" in first
    assert "head.bias" not in first
    for name, drawn_ in first.items():
        assert drawn_.shape == weights[name].shape
        norms = weights[name].detach().flatten(1).norm(dim=1)
        assert torch.allclose(drawn_.flatten(1).norm(dim=1), norms, rtol=1e-5)
        assert not torch.equal(drawn_, second[name])
    assert torch.equal(direction(model, 0, "first")["head.weight"], first["head.weight"])


def test_the_surface_is_the_loss_of_the_moved_weights() -> None:
    model = network(conv([1.0]), linear([[1.0], [-1.0]]))
    before = {name: weight.clone() for name, weight in model.state_dict().items()}
    data = ImageSet(np.full((2, 4, 4, 1), 255, np.uint8), np.array([0, 1]), ("a", "b"))
    places = np.array([-1.0, 0.0, 1.0])
    found = surface(model, {"clean": data}, places, seed=3)["clean"]
    first, second = (direction(model, 3, which) for which in ("first", "second"))
    for row, across in enumerate(places):
        for column, along in enumerate(places):
            moved = {n: before[n] + along * first[n] + across * second[n] for n in first}
            value = float(moved["backbone.body.weight"])
            logits = moved["head.weight"][:, 0] * value
            # The mean of -log softmax over both labels.
            expected = float(torch.logsumexp(logits, 0) - logits.mean())
            assert found[row, column] == pytest.approx(expected, abs=1e-5)
    assert all(torch.equal(weight, model.state_dict()[name]) for name, weight in before.items())
    with pytest.raises(ParameterError, match=r"^radius: 1e\+30 given, at which a loss is not finite"):
        surface(model, {"clean": data}, np.array([-1e30, 0.0, 1e30]), seed=3)


def test_the_change_of_a_planted_channel() -> None:
    # Three channels: the image, nothing, and minus twice the image. The trigger adds 51/255 = 0.2 to two pixels of each.
    model = network(conv([1.0, 0.0, -2.0]), linear([[1.0, 1.0, 1.0]]))
    clean = np.zeros((3, 4, 4, 1), np.uint8)
    stamped = clean.copy()
    stamped[:, 0, :2] = 51
    pairs = Pairs(clean, stamped, np.zeros(3, int), np.zeros(3, int), np.arange(3), ("a",))
    change, without, with_ = changes(model, pairs, "map")
    assert change.tolist() == pytest.approx([0.2 * np.sqrt(2), 0.0, 0.4 * np.sqrt(2)])
    assert without.tolist() == [0.0, 0.0, 0.0]
    assert with_.tolist() == pytest.approx([0.4 / 16, 0.0, -0.8 / 16])
    # Of the features, which are means over 16 positions, it is the difference itself.
    change, _, _ = changes(model, pairs, "penultimate")
    assert change.tolist() == pytest.approx([0.4 / 16, 0.0, 0.8 / 16])


def test_principal_components_of_points_on_a_line() -> None:
    along = np.array([-2.0, -1.0, 0.0, 3.0])
    points, share = principal(np.outer(along, [3.0, -4.0, 0.0]) / 5 + 7)
    # The largest weight is that of the second coordinate, and positive: the line is read backwards.
    assert points[:, 0].tolist() == pytest.approx((-along).tolist())
    assert np.abs(points[:, 1]).max() < 1e-9
    assert share == pytest.approx(1.0)
    points, share = principal(np.ones((4, 3)))
    assert (points.tolist(), share) == ([[0.0, 0.0]] * 4, 0.0)
    assert principal(along[:, None])[0][:, 1].tolist() == [0.0] * 4


def test_neighbours_stay_together() -> None:
    rng = np.random.default_rng(0)
    features = np.concatenate([rng.normal(size=(20, 5)), 50 + rng.normal(size=(20, 5))])
    placed = neighbours(features, principal(features)[0], 5.0, seed=1)
    assert placed.shape == (40, 2)
    centres = placed[:20].mean(0), placed[20:].mean(0)
    spread = max(np.linalg.norm(part - part.mean(0), axis=1).max() for part in (placed[:20], placed[20:]))
    assert np.linalg.norm(centres[0] - centres[1]) > 2 * spread
    assert np.isfinite(neighbours(np.ones((20, 3)), np.zeros((20, 2)), 5.0, seed=1)).all()


def test_means_by_class_and_the_order_of_neurons() -> None:
    batches = [
        (np.array([0, 2]), np.array([[1, 0, 4], [0, 6, 2]], np.float32)),
        (np.array([0]), np.array([[3, 0, 0]], np.float32)),
    ]
    means = class_means(batches, 3, 3)
    assert means[[0, 2]].tolist() == [[2.0, 0.0, 2.0], [0.0, 6.0, 2.0]]
    assert np.isnan(means[1]).all()
    # Neuron 0 and 2 answer to class 0 most (the latter to both alike), neuron 1 to class 2.
    assert ordered(means).tolist() == [0, 2, 1]


# The figures as a whole. Those with their pictures first: the others are made without.


@pytest.mark.parametrize("name", FIGURES)
def test_pictures_and_tables_are_the_same_bytes_twice(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Smaller than they are, which takes less time.
    axes_of = figures.axes_of
    monkeypatch.setattr(figures, "axes_of", lambda width=4.0, height=3.0, dpi=0: axes_of(width, height, 40))
    monkeypatch.setattr(figures, "SHEET_DPI", 40)
    one, two = scene_of(models_drawn=1), scene_of(models_drawn=1)
    first, again = drawn(name, one), drawn(name, two)
    assert again == first
    assert first.pictures
    for picture in first.pictures:
        with Image.open(io.BytesIO(picture.png)) as image:
            assert image.format == "PNG"
            assert "Software" not in image.info
            assert min(image.size) > 50
        assert picture.caption
    for text in first.tables.values():
        rows = list(csv.reader(io.StringIO(text)))
        assert len({len(row) for row in rows}) == 1
        assert len(rows) > 1


def test_a_picture_for_each_model_and_kind(made: dict[str, Drawing]) -> None:
    names = {name: [picture.name for picture in drawing.pictures] for name, drawing in made.items()}
    each = ("backdoored", "purified_ft")
    assert names == {
        "embedding": [f"{model}-{kind}" for model in each for kind in ("pca", "tsne")],
        "confusion": [f"{model}-{kind}" for model in each for kind in ("clean", "triggered")],
        "grad_cam": list(each),
        "activation": ["change"],
        "landscape": [f"{model}-{kind}" for model in each for kind in ("clean", "backdoor")],
        "frequency": ["clean", "triggered", "residual", "profile"],
        "neurons": list(each),
    }
    assert "Crosses: the " in made["embedding"].caption


def test_batches_change_nothing(made: dict[str, Drawing], monkeypatch: pytest.MonkeyPatch) -> None:
    one = scene_of(models_drawn=1)
    for module in (inference, activation, landscape):
        monkeypatch.setattr(module, "BATCH", 8)
    monkeypatch.setattr(grad_cam_module, "PASS", 1)
    monkeypatch.setattr(frequency, "CHUNK", 1)
    for name, key, column in (
        ("confusion", "backdoored", "count"),
        ("neurons", "backdoored", "neuron_3"),
        ("activation", "change", "change"),
        ("landscape", "backdoored", "clean"),
        ("grad_cam", "backdoored", "clean_on_trigger"),
        ("frequency", "profile", "residual"),
    ):
        before, now = (
            [float(row[column] or 0) for row in rows_of(drawing, key) if row.get("model", "backdoored") == "backdoored"]
            for drawing in (made[name], drawn(name, one))
        )
        assert now == pytest.approx(before, rel=1e-4, abs=1e-6), name


def test_what_another_seed_changes(scene: Scene, made: dict[str, Drawing]) -> None:
    for name in ("landscape",):
        assert drawn(name, scene, seed=1).tables != made[name].tables, name
    assert {name for name, figure in FIGURES.items() if not figure.seeded} == {"confusion", "neurons"}


def test_tables_hold_what_is_drawn(scene: Scene, made: dict[str, Drawing]) -> None:
    marked = {row["sample"]: row["poisoned"] for row in rows_of(made["embedding"], "backdoored")}
    assert scene.poisoned is not None
    assert all(int(mark) == scene.poisoned[int(sample)] for sample, mark in marked.items())
    assert len(marked) == 12
    change = [float(row["change"]) for row in rows_of(made["activation"], "change") if row["model"] == "backdoored"]
    assert change == sorted(change, reverse=True)
    assert len(change) == 64
    grid = rows_of(made["landscape"], "backdoored")
    assert [(row["first"], row["second"]) for row in grid[:4]] == [
        ("-1.0", "-1.0"),
        ("0.0", "-1.0"),
        ("1.0", "-1.0"),
        ("-1.0", "0.0"),
    ]
    areas = {row["trigger_area"] for row in rows_of(made["grad_cam"], "backdoored")}
    assert areas == {f"{9 / 256:.6g}"}
    assert [row["class"] for row in rows_of(made["neurons"], "backdoored")] == [
        "cat",
        "<b>dog</b>",
        "'=eel",
        "triggered",
    ]


def test_without_truth_what_needs_no_trigger_is_drawn(blank: None) -> None:
    unknown = scene_of(trigger=False, poisoned=False, models_drawn=1)
    why = {name: figure.missing(unknown) for name, figure in FIGURES.items()}
    assert {name for name, reason in why.items() if reason} == {"activation", "frequency"}
    assert why["activation"] == "it needs a trigger, and none is known"
    for name in ("embedding", "confusion", "grad_cam", "landscape", "neurons"):
        made_ = drawn(name, unknown)
        assert made_.pictures, name
        words = " ".join([made_.caption, *(picture.caption for picture in made_.pictures), *made_.tables.values()])
        assert "trigger" not in words, name
        assert "poison" not in words, name


def test_what_a_scene_lacks(blank: None) -> None:
    known = scene_of()
    none = Overlay(np.zeros(0, np.int64), known.test.base[:0], np.zeros(0, np.int64))  # type: ignore[index]
    rare = Scene(**{**vars(known), "triggered": {"semantic": Triggered(known.test, none)}})
    assert FIGURES["activation"].missing(rare) == "it needs triggered images, and no test image carries the trigger"
    assert FIGURES["confusion"].missing(rare) is None
    assert len(FIGURES["confusion"].draw(rare).pictures) == 2
    empty = scene_of(trigger=False, test=0)
    lacking = {
        name for name, figure in FIGURES.items() if figure.missing(empty) == "it needs a test split, and there is none"
    }
    assert lacking == set(FIGURES) - {"embedding"}


def test_pairs_are_of_all_triggers() -> None:
    known = scene_of()
    one = known.triggered["badnets"]
    other = Triggered(known.test, Overlay(np.array([0]), known.test.base[[5]], np.array([2])))
    several = Scene(**{**vars(known), "triggered": {"a": one, "b": other}})
    every = several.pairs(1000, 0, "x")
    assert len(every) == len(one) + 1
    assert (every.index[-1], every.true[-1], every.wanted[-1]) == (0, 0, 2)
    assert np.array_equal(every.clean[-1], known.test.base[0])
    assert np.array_equal(every.triggered[-1], known.test.base[5])
    some = several.pairs(3, 0, "x")
    assert len(some) == 3
    assert not np.array_equal(some.index, several.pairs(3, 1, "x").index)


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [("embedding", {"samples": 20, "perplexity": 20.0}, r"^perplexity: 20 given, allowed: less than 20, the number")],
)
def test_arguments_that_do_not_fit(name: str, arguments: dict[str, Any], message: str, scene: Scene) -> None:
    with pytest.raises(ParameterError, match=message):
        FIGURES[name].draw(scene, seed=0, **arguments)


def test_a_table_is_text_in_quotes_and_numbers_without() -> None:
    text = csv_of({"name": ["a,b", "=1"], "count": np.array([1, 2]), "value": [1 / 3, np.nan]})
    assert text == '"name","count","value"\n"a,b",1,0.333333\n"=1",2,""\n'


def test_many_classes_and_negative_features(blank: None) -> None:
    # Names no longer fit, colours go around the wheel, and a map has two signs.
    classes = tuple(f"class{number}" for number in range(30))
    images = np.random.default_rng(0).integers(0, 255, (40, 4, 4, 1), dtype=np.uint8)
    data = ImageSet(images, np.arange(40) % 29, classes)
    head = linear([[float(n), 1.0] for n in range(30)])
    plain = Scene(
        models={"backdoored": network(conv([1.0, -1.0]), head)}, data=data, poisoned=None, test=data, triggered={}
    )
    for name in ("embedding", "confusion", "neurons"):
        assert drawn(name, plain).pictures
    table = drawn("neurons", plain).tables["backdoored"].splitlines()
    # The last class has no image.
    assert table[-1] == '"class29","",""'


# The artefact and the page.


def a_png(size: tuple[int, int] = (4, 4)) -> bytes:
    buffer = io.BytesIO()
    Image.new("L", size).save(buffer, "PNG")
    return buffer.getvalue()


def save(folder: Path, **changes: Any) -> Drawing:
    pictures = [
        Picture(name="a", png=a_png(), caption="first"),
        Picture(name="b", png=a_png(), caption="second", wide=True),
    ]
    drawing = Drawing(**{"caption": "What it shows.", "pictures": pictures, "tables": {"a": '"x"\n1\n'}, **changes})
    save_drawing(drawing, folder, figure="confusion", parameters={}, made_from={"poisoned": "0" * 64})
    return drawing


def test_a_drawing_is_read_as_it_was_written(tmp_path: Path) -> None:
    drawing, found = save(tmp_path / "it"), load_drawing(tmp_path / "it", figure="confusion")
    assert (found.caption, found.pictures) == (drawing.caption, drawing.pictures)
    assert (tmp_path / "it/a.csv").read_text() == '"x"\n1\n'


def redescribe(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    about = read_json(folder / "figure.json")
    change(about)
    write_json(folder / "figure.json", about)


def swap(folder: Path, content: bytes) -> None:
    import hashlib

    (folder / "a.png").write_bytes(content)
    redescribe(folder, lambda about: about["files"].update({"a.png": hashlib.sha256(content).hexdigest()}))


DAMAGED: list[tuple[Callable[[Path], object], str]] = [
    (lambda folder: (folder / "a.png").write_bytes(b"x"), r"a\.png: digest mismatch"),
    (lambda folder: (folder / "a.png").unlink(), r"a\.png: missing, though its manifest lists it"),
    (lambda folder: swap(folder, b"<svg onload=alert(1)>"), r"a\.png: not readable as a PNG picture"),
    (lambda folder: swap(folder, a_png((64, 64))[:-20]), r"a\.png: not readable as a PNG picture"),
    (lambda folder: swap(folder, a_png((9000, 9000))), r"a\.png: 9000x9000 px found, allowed: at most 67,108,864"),
    (lambda folder: swap(folder, b"\0" * ((16 << 20) + 1)), r"a\.png: 16 MiB found, allowed: at most 16 MiB"),
    (
        lambda folder: redescribe(folder, lambda a: a["pictures"][0].update(name="../a")),
        r"pictures\.'?0'?\.name: '\.\./a' found",
    ),
    (
        lambda folder: redescribe(folder, lambda a: a["pictures"][0].update(name="b")),
        r"pictures: a name is there twice",
    ),
    (
        lambda folder: redescribe(folder, lambda a: a["pictures"][0].update(name="c")),
        r"c\.png: not listed in its manifest",
    ),
    (
        lambda folder: redescribe(folder, lambda a: a.update(figure="neurons")),
        r"figure: 'neurons' found, allowed: 'confusion'",
    ),
    (lambda folder: redescribe(folder, lambda a: a.update(caption=3)), r"caption: 3 found"),
]


@pytest.mark.parametrize(("damage", "message"), DAMAGED, ids=[message for _, message in DAMAGED])
def test_damaged_drawings_are_refused_in_one_line(
    damage: Callable[[Path], object], message: str, tmp_path: Path
) -> None:
    save(tmp_path)
    damage(tmp_path)
    with pytest.raises(UserError, match=message) as caught:
        load_drawing(tmp_path, figure="confusion")
    assert "\n" not in str(caught.value)


def test_the_page_shows_them_with_their_words() -> None:
    pictures = [
        Picture(name="a", png=b"one", caption='<i>"first"'),
        Picture(name="b", png=b"two", caption="second", wide=True),
    ]
    drawings = {
        "confusion": Drawing(caption="What it shows.", pictures=pictures),
        "activation": Drawing(caption="The figure activation is left out: it needs a trigger, and none is known."),
    }
    page = report(run_of(drawings=drawings))
    shown = page.html().split("<h2>What the models do</h2>")[1]
    assert 'alt="&lt;i&gt;&quot;first&quot;"' in shown
    assert 'aria-label="second"' in shown
    assert shown.count("<img") == 2
    assert "left out: it needs a trigger" in shown
    assert "What the models do" not in page.markdown()
    assert "What the models do" not in report(run_of()).html()
