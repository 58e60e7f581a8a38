"""The prior, the samplers, and the store: resumable, content-keyed, independent of batches."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from unpoison.core.errors import UserError
from unpoison.data.imageset import ImageSet, Overlay
from unpoison.variations import prior as prior_module
from unpoison.variations.colour import match_colours
from unpoison.variations.prior import Prior, PriorRecipe, load_prior, save_prior, train_prior
from unpoison.variations.sampling import BATCH, SamplerSettings, make_scheduler, vary
from unpoison.variations.store import Outcome, generate_all

RECIPE = PriorRecipe(steps=12, batch_size=16, channels=[8, 8], unshuffle=4, checkpoint_every=4)
CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def prior(splits: dict[str, ImageSet], tmp_path_factory: pytest.TempPathFactory) -> Prior:
    scratch = tmp_path_factory.mktemp("prior") / "scratch"
    trained, rows = train_prior(
        splits["public"], PriorRecipe(steps=60, batch_size=32, channels=[16, 16]), seed=0, scratch=scratch
    )
    assert rows[-1]["loss"] < rows[0]["loss"]
    assert not scratch.exists()
    return trained


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(
    splits: dict[str, ImageSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    whole, rows = train_prior(splits["public"], RECIPE, seed=0, scratch=tmp_path / "a")
    steps_done = []
    real = prior_module._update_average

    def stop_at_ten(*arguments: object) -> None:
        steps_done.append(1)
        if len(steps_done) == 10:
            raise KeyboardInterrupt
        real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(prior_module, "_update_average", stop_at_ten)
    with pytest.raises(KeyboardInterrupt):
        train_prior(splits["public"], RECIPE, seed=0, scratch=tmp_path / "b")
    resumed, resumed_rows = train_prior(splits["public"], RECIPE, seed=0, scratch=tmp_path / "b")
    assert len(steps_done) == 10 + 4  # from the checkpoint at step 8, not from the start
    assert rows == resumed_rows
    for a, b in zip(whole.unet.parameters(), resumed.unet.parameters(), strict=True):
        assert torch.equal(a, b)


def test_prior_round_trip_and_tampering(prior: Prior, tmp_path: Path) -> None:
    save_prior(prior, tmp_path / "p", made_by={})
    again = load_prior(tmp_path / "p")
    x, t = torch.rand(1, 12, 16, 16), torch.tensor(5)
    assert torch.allclose(prior.unet(x, t).sample, again.unet(x, t).sample, atol=1e-5)
    path = tmp_path / "p" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="digest mismatch"):
        load_prior(tmp_path / "p")


def test_impossible_priors_are_refused(splits: dict[str, ImageSet], tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"prior\.channels: \[8, 8, 8, 8, 8\] with prior\.unshuffle 4"):
        train_prior(splits["public"], PriorRecipe(channels=[8] * 5, unshuffle=4), seed=0, scratch=tmp_path)
    with pytest.raises(UserError, match=r"prior\.channels: \[12\] given, allowed: multiples of 8"):
        train_prior(splits["public"], PriorRecipe(channels=[12]), seed=0, scratch=tmp_path)


def test_more_noise_than_the_prior_knows_is_refused(prior: Prior, splits: dict[str, ImageSet]) -> None:
    modest = Prior(prior.unet, prior.unshuffle, max_strength=0.4)
    with pytest.raises(UserError, match=r"variations\.strength: 0\.6 given, allowed: up to prior\.max_strength 0\.4"):
        vary(modest, splits["test"].tensor(np.arange(2)), [0, 1], SamplerSettings(), seed=0, device=CPU)


def test_loss_weights_stop_at_five() -> None:
    weights = prior_module.min_snr_weights(torch.tensor([0.99, 0.5, 0.2]))
    assert weights.tolist() == pytest.approx([5.0, 1.0, 0.25])


def test_encode_and_decode_are_inverse(prior: Prior) -> None:
    images = torch.rand(2, 3, 32, 32)
    assert prior.encode(images).shape == (2, 12, 16, 16)
    assert torch.allclose(prior.decode(prior.encode(images)), images, atol=1e-6)


@pytest.mark.parametrize("scheduler", ["ddim", "dpmsolver++"])
def test_variation_depends_on_image_and_key_only(scheduler: str, prior: Prior, splits: dict[str, ImageSet]) -> None:
    settings = SamplerSettings(strength=0.5, steps=4, scheduler=scheduler, num_variations=2)
    images, keys = splits["test"].tensor(np.arange(5)), [10, 11, 12, 13, 14]
    together = vary(prior, images, keys, settings, seed=0, device=CPU)
    assert together.shape == (5, 2, 3, 32, 32)
    order = [3, 0, 4]
    apart = vary(prior, images[order], [keys[i] for i in order], settings, seed=0, device=CPU)
    assert torch.equal(apart, together[order])
    assert not torch.equal(together[:, 0], together[:, 1])
    assert not torch.equal(vary(prior, images, keys, settings, seed=1, device=CPU), together)


def test_batch_is_full_and_the_same_anywhere_in_it(prior: Prior, splits: dict[str, ImageSet]) -> None:
    settings = SamplerSettings(strength=0.5, steps=4)
    images = splits["train"].tensor(np.arange(BATCH))
    full = vary(prior, images, list(range(BATCH)), settings, seed=0, device=CPU)
    last = vary(prior, images[-1:], [BATCH - 1], settings, seed=0, device=CPU)
    assert torch.equal(full[-1], last[0])


def test_strength_starts_where_it_says_and_more_of_it_changes_more(prior: Prior, splits: dict[str, ImageSet]) -> None:
    for name in ("ddim", "dpmsolver++"):
        timesteps = make_scheduler(SamplerSettings(strength=0.6, steps=10, scheduler=name))[1]
        assert len(timesteps) == 6
        assert abs(int(timesteps[0]) - 600) <= 1
    with pytest.raises(UserError, match=r"variations\.strength: 0\.05 given"):
        make_scheduler(SamplerSettings(strength=0.05, steps=10))
    images = splits["test"].tensor(np.arange(16))
    distance = []
    for strength in (0.1, 0.4, 0.8):
        settings = SamplerSettings(strength=strength, color_transfer=False)
        made = vary(prior, images, list(range(16)), settings, seed=0, device=CPU)[:, 0]
        distance.append((made.float() - images.float()).abs().mean().item())
    assert distance == sorted(distance)


def test_colour_transfer_golden() -> None:
    variation = torch.tensor([[[0, 10, 20], [100, 110, 120]], [[200, 210, 220], [50, 60, 70]]], dtype=torch.float32)
    source = torch.tensor([[[10, 10, 10], [20, 30, 40]]], dtype=torch.float32)
    result = match_colours(variation.permute(2, 0, 1)[None] / 255, source.permute(2, 0, 1)[None] / 255)
    found = (result[0].permute(1, 2, 0) * 255 + 1e-3).to(torch.uint8).tolist()
    assert found == [[[9, 8, 7], [15, 21, 27]], [[22, 35, 47], [12, 14, 17]]]
    flat = match_colours(torch.full((1, 3, 2, 2), 0.3), torch.rand(1, 3, 2, 2))
    assert torch.isfinite(flat).all()


class Counter:
    """A generator that inverts images and counts them; it can be killed after some calls."""

    def __init__(self, stop_after: int = 10**9) -> None:
        self.images, self.calls, self.stop_after = 0, 0, stop_after

    def __call__(self, images: NDArray[np.uint8], keys: NDArray[np.int64]) -> NDArray[np.uint8]:
        if self.calls == self.stop_after:
            raise KeyboardInterrupt
        self.calls += 1
        self.images += len(images)
        return (255 - images)[:, None]


DATA = ImageSet(np.random.default_rng(0).integers(0, 256, (50, 4, 4, 3), dtype=np.uint8), np.zeros(50, int), ("a",))


def all_of(outcome: Outcome) -> np.ndarray:
    """The first variation of every sample, in the data set's order."""
    images = np.zeros_like(DATA.base)
    for samples, made in outcome.blocks():
        images[samples] = made[:, 0]
    return images


def test_store_survives_a_kill(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        generate_all(DATA, {"s": 1}, Counter(stop_after=3), store=tmp_path, batch=8)
    counter = Counter()
    outcome = generate_all(DATA, {"s": 1}, counter, store=tmp_path, batch=8)
    assert (outcome.generated, outcome.reused, counter.images) == (26, 24, 26)
    assert (all_of(outcome) == 255 - DATA.base).all()


def test_store_generates_only_what_changed(tmp_path: Path) -> None:
    generate_all(DATA, {"s": 1}, Counter(), store=tmp_path, batch=8)
    index = np.array([3, 30])
    changed = ImageSet(DATA.base, DATA.labels, ("a",), "", Overlay(index, DATA.gather(index) ^ 1, DATA.labels[index]))
    counter = Counter()
    outcome = generate_all(changed, {"s": 1}, counter, store=tmp_path, batch=8)
    assert (outcome.generated, counter.images) == (2, 2)
    assert (all_of(outcome) == 255 - changed.gather(np.arange(50))).all()
    assert generate_all(DATA, {"s": 2}, Counter(), store=tmp_path, batch=8).reused == 0


def test_same_image_under_another_key_is_another_variation(tmp_path: Path) -> None:
    twice = ImageSet(np.repeat(DATA.base[:1], 2, 0), DATA.labels[:2], ("a",))
    assert generate_all(twice, {}, Counter(), store=tmp_path, batch=8).generated == 2


@pytest.mark.parametrize("damage", ["truncate", "flip"])
def test_damaged_shard_is_named_and_generated_again(
    damage: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    generate_all(DATA, {}, Counter(), store=tmp_path, batch=25)
    shard = sorted(tmp_path.rglob("*.npz"))[0]
    content = bytearray(shard.read_bytes())
    content[len(content) // 2] ^= 255
    shard.write_bytes(content[:200] if damage == "truncate" else content)
    outcome = generate_all(DATA, {}, Counter(), store=tmp_path, batch=25)
    assert outcome.generated == 25
    assert (all_of(outcome) == 255 - DATA.base).all()
    assert f"{shard}: damaged" in capsys.readouterr().out
