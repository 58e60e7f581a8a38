"""Triggers that are trained networks: what training reaches, what the trigger keeps, and what an image's result depends on."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from unpoison.attacks import SINGLE, dfst, ssba
from unpoison.core.arrays import Images
from unpoison.core.content_store import ContentStore
from unpoison.core.errors import ParameterError, UserError
from unpoison.crafting.attack import intent
from unpoison.crafting.context import Context
from unpoison.crafting.craft import make_trigger
from unpoison.crafting.encoders import BLOCK, fresh, packed, training_batches, unpacked
from unpoison.data.imageset import ImageSet
from unpoison.poisoning.trigger import Trigger, eight_bit, stamp

SSBA: dict[str, Any] = {"bits": 8, "steps": 3, "batch_size": 4, "width": 4, "l2_wait": 1, "l2_ramp": 2}
DFST: dict[str, Any] = {"steps": 3, "batch_size": 4, "width": 4}
BOTH = pytest.mark.parametrize(("attack", "arguments"), [("ssba", SSBA), ("dfst", DFST)], ids=["ssba", "dfst"])
CPU = torch.device("cpu")


def smooth(n: int, height: int = 16, width: int = 16, channels: int = 3, seed: int = 0) -> Images:
    """Images with large shapes in them, as photographs have and noise has not."""
    coarse = torch.rand(n, channels, 4, 4, generator=torch.Generator().manual_seed(seed))
    fine = F.interpolate(coarse, size=(height, width), mode="bilinear")
    return (255 * fine).to(torch.uint8).permute(0, 2, 3, 1).numpy()


def data_of(images: Images) -> ImageSet:
    return ImageSet(images, np.zeros(len(images), np.int64), ("a", "b"), "digest")


def made(attack: str, images: Images, *, store: ContentStore | None = None, **arguments: Any) -> Trigger:
    context = Context(train=data_of(images), seed=0, store=store or ContentStore(None))
    return make_trigger(intent(attack, SINGLE[attack], {}, arguments), context)


@BOTH
def test_stamp_depends_neither_on_the_key_nor_on_the_place_in_a_block(attack: str, arguments: dict[str, Any]) -> None:
    images = smooth(BLOCK + 5)
    trigger = made(attack, images, **arguments)
    together = stamp(trigger, images, np.arange(len(images)), train=True)
    backwards = stamp(trigger, images[::-1], 40 + np.arange(len(images)), train=False)[::-1]
    # Float noise may turn a value that is next to a whole number into its neighbour.
    assert np.abs(together.astype(int) - backwards).max() <= 1
    assert (together != backwards).mean() < 1e-3


@BOTH
def test_usable_with_gradients_after_inference_mode(attack: str, arguments: dict[str, Any]) -> None:
    images = smooth(4)
    trigger = made(attack, images, **arguments)
    stamped = stamp(trigger, images, np.arange(4), train=True)
    floats = torch.from_numpy(images).permute(0, 3, 1, 2).float().requires_grad_()
    values = trigger.apply(floats, np.arange(4), train=True)
    values.sum().backward()
    assert floats.grad is not None
    difference = eight_bit(values.detach(), "truncate").permute(0, 2, 3, 1).numpy().astype(int) - stamped
    assert np.abs(difference).max() <= 1


@BOTH
def test_trained_once(
    attack: str,
    arguments: dict[str, Any],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    store, images = ContentStore(tmp_path), smooth(8)
    first = stamp(made(attack, images, store=store, **arguments), images, np.arange(8), train=True)
    made(attack, images, store=store, **{**arguments, "lr": 0.5})
    assert capsys.readouterr().out.count(": made in") == 2
    monkeypatch.setattr(ssba, "train_networks", None)
    monkeypatch.setattr(dfst, "train_network", None)
    again = stamp(made(attack, images, store=store, **arguments), images, np.arange(8), train=True)
    assert (again == first).all()


@BOTH
def test_networks_that_diverge_stamp_nothing(attack: str, arguments: dict[str, Any], tmp_path: Path) -> None:
    store = ContentStore(tmp_path)
    said = (
        rf"^{attack}\.lr: 1e\+30 given, with which the training of the (encoder|stylist) diverged: \d+ of its tensors"
    )
    with pytest.raises(ParameterError, match=said):
        made(attack, smooth(8), store=store, **{**arguments, "lr": 1e30})
    assert not list(tmp_path.rglob("*.npz"))


@pytest.mark.parametrize("weight", [1e30, np.nan])
@BOTH
def test_values_that_are_not_finite_become_no_image(attack: str, arguments: dict[str, Any], weight: float) -> None:
    images = smooth(4)
    trigger = made(attack, images, **arguments)
    broken = replace(trigger, weights=np.full_like(trigger.weights, weight))
    with pytest.raises(UserError, match=r"^\w+: gives values that are not finite"):
        stamp(broken, images, np.arange(4), train=True)


def test_ssba_another_secret_takes_the_same_encoder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, images = ContentStore(tmp_path), smooth(8)
    first = made("ssba", images, store=store, **SSBA, secret="a")
    monkeypatch.setattr(ssba, "train_networks", None)
    second = made("ssba", images, store=store, **SSBA, secret="b")
    stamped = [stamp(trigger, images, np.arange(8), train=True) for trigger in (first, second)]
    assert (stamped[0] != stamped[1]).any()


def test_ssba_hides_bits_that_the_decoder_reads_from_other_images(capsys: pytest.CaptureFixture[str]) -> None:
    settings: dict[str, Any] = {
        "bits": 8, "steps": 160, "batch_size": 16, "lr": 4e-3, "width": 4, "l2_weight": 10.0, "l2_wait": 20, "l2_ramp": 80,
    }  # fmt: skip
    images = smooth(64)
    weights = ssba.train_networks(data_of(images), 0, **settings)
    encoder, decoder = ssba.Encoder(3, 8, 4), ssba.Decoder(3, 16, 16, 8, 16)
    new = data_of(smooth(100, seed=1))
    fresh(encoder, 0, "test"), fresh(decoder, 0, "test")
    untrained, _ = ssba.quality(new, encoder, decoder)
    unpacked(lambda: encoder, weights["encoder"], CPU), unpacked(lambda: decoder, weights["decoder"], CPU)
    accuracy, psnr = ssba.quality(new, encoder, decoder)
    assert untrained < 0.65
    assert accuracy > 0.9
    assert psnr > 20
    assert "of the hidden bits are read back" in capsys.readouterr().out


def test_ssba_trigger_carries_its_secret() -> None:
    """`apply` hides the secret that was asked for: the residual is the encoder's for these bits, per image."""
    images = smooth(5)
    trigger = made("ssba", images, **{**SSBA, "bits": 24}, secret="abc")
    assert isinstance(trigger, ssba.HiddenString)
    np.testing.assert_array_equal(np.packbits(trigger.secret), np.frombuffer(b"abc", np.uint8))
    encoder = unpacked(lambda: ssba.Encoder(3, 24, 4), trigger.weights, CPU)
    floats = torch.from_numpy(images).permute(0, 3, 1, 2).float()
    values = trigger.apply(floats, np.arange(5), train=True)
    for i in range(5):
        residual = encoder(floats[i : i + 1] / 255, torch.from_numpy(trigger.secret).float()[None])
        torch.testing.assert_close(values[i], floats[i] + 255 * residual[0], rtol=0, atol=1e-3)
    residuals = values - floats
    assert not torch.allclose(residuals[0], residuals[1], atol=0.1)


def test_ssba_secret_bits() -> None:
    bits = ssba.secret_bits("a", 100)
    assert bits.shape == (100,)
    assert bytes(np.packbits(bits[:56])) == b"a      "
    # A trailing space is padding in the first seven bytes, but not in what follows them.
    assert (ssba.secret_bits("a ", 100)[:56] == bits[:56]).all()
    assert (ssba.secret_bits("a ", 100)[56:] != bits[56:]).any()
    np.testing.assert_array_equal(ssba.secret_bits("a", 300)[:100], bits)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"secret": ""}, r"^ssba\.secret: '' given, allowed with 100 bits: 1 to 7 bytes"),
        ({"secret": "eightish"}, r"^ssba\.secret: 'eightish' given"),
        ({"secret": "éééé"}, r"^ssba\.secret: 'éééé' given"),
        ({"bits": 16, "secret": "abc"}, r"^ssba\.secret: 'abc' given, allowed with 16 bits: 1 to 2 bytes"),
        ({"bits": 7}, r"^ssba\.bits: 7 given, allowed: at least 8"),
        ({"steps": 799}, r"^ssba\.steps: 799 given, allowed: at least l2_wait \+ l2_ramp, 800"),
    ],
)
def test_ssba_errors(arguments: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        made("ssba", smooth(2), **arguments)


@pytest.mark.parametrize("size", [(28, 28), (32, 32), (33, 47), (224, 224)])
def test_ssba_decoder_takes_any_size(size: tuple[int, int]) -> None:
    decoder = ssba.Decoder(1, *size, 10, 2)
    assert decoder(torch.zeros(2, 1, *size)).shape == (2, 10)
    assert decoder.head.in_features <= 16 * 7 * 8


def test_dfst_style_is_a_gram_matrix() -> None:
    """Against one image, one pixel at a time."""
    images = torch.rand(2, 3, 8, 10, generator=torch.Generator().manual_seed(0))
    grams = dfst.style(images)
    assert len(grams) == 3
    image = images[1].double().numpy()
    image = image.reshape(3, 4, 2, 5, 2).mean((2, 4))
    expected = np.zeros((12, 12))
    for row in range(3):
        for column in range(4):
            colour = image[:, row, column]
            below, beside = image[:, row + 1, column] - colour, image[:, row, column + 1] - colour
            feature = np.concatenate([colour, below, beside, [row / 2 - 0.5, column / 3 - 0.5, 1]])
            expected += np.outer(feature, feature) / 12
    np.testing.assert_allclose(grams[1][1].numpy(), expected, atol=1e-6)


def test_dfst_losses_at_their_zero() -> None:
    sunrise = dfst.sunrise(16, 24, 3)
    assert sunrise.shape == (1, 3, 16, 24)
    assert sunrise.min() >= 0
    assert sunrise.max() <= 1
    assert dfst.style_loss(sunrise, dfst.style(sunrise)) == 0
    assert dfst.style_loss(sunrise.flip(2), dfst.style(sunrise)) > 0.001  # a sunrise upside down is another style
    assert dfst.content_loss(sunrise, sunrise) == 0
    assert dfst.content_loss(sunrise + 0.25, sunrise) < 1e-12  # only differences between neighbours are content


def test_dfst_sunrise_is_grey_in_one_channel() -> None:
    np.testing.assert_allclose(dfst.sunrise(16, 16, 1)[0, 0], dfst.sunrise(16, 16, 3)[0].mean(0), atol=1e-6)


def test_dfst_gives_the_style_and_keeps_the_content() -> None:
    images = smooth(64)
    weights = dfst.train_network(
        data_of(images), 0, steps=100, batch_size=16, lr=4e-3, width=4, style_weight=1.0, content_weight=10.0
    )
    new = smooth(50, seed=1)
    stamped = stamp(dfst.Styled(weights, 3, 4), new, np.arange(50), train=False)
    before, after = (torch.from_numpy(images).permute(0, 3, 1, 2) / 255 for images in (new, stamped))
    wanted = dfst.style(dfst.sunrise(16, 16, 3))
    assert dfst.style_loss(after, wanted) < 0.4 * dfst.style_loss(before, wanted)
    # A style without content would lose what differs between neighbours in the image.
    assert dfst.content_loss(after, before) < 0.6 * dfst.content_loss(torch.zeros_like(before), before)


def test_training_batches_are_different_images_of_the_set() -> None:
    images = np.arange(10, dtype=np.uint8)[:, None, None, None].repeat(4, 1).repeat(4, 2)
    batches = list(training_batches(data_of(images), 6, 3, 0, "test"))
    drawn = [(batch[:, 0, 0, 0] * 255).round().tolist() for batch in batches]
    assert [len(set(batch)) for batch in drawn] == [6, 6, 6]
    assert len({tuple(batch) for batch in drawn}) > 1
    assert len(next(training_batches(data_of(images), 64, 1, 0, "test"))) == 10


def test_fresh_weights_leave_the_global_random_state_alone() -> None:
    torch.manual_seed(5)
    expected = torch.rand(1)
    torch.manual_seed(5)
    network = dfst.Stylist(3, 4)
    torch.manual_seed(5)
    fresh(network, 0, "a")
    assert torch.rand(1) == expected
    first = packed(network)
    fresh(network, 0, "b")
    assert (packed(network) != first).any()


def test_fresh_weights_are_he_s_and_an_image_s_change_starts_small() -> None:
    network = dfst.Stylist(3, 16)
    fresh(network, 0, "test")
    unet = network.network
    for layer, scale in ((unet.first, 1.0), (unet.up1, 1.0), (unet.last, 0.1)):
        he = (2 / (layer.in_channels * 9)) ** 0.5
        assert layer.weight.std().item() == pytest.approx(scale * he, rel=0.15)
        assert not layer.bias.any()
