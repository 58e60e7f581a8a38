"""The prior and the samplers: resumable, seeded, and what an image becomes depends on it and its key alone."""

from __future__ import annotations

from collections.abc import Mapping
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from copied import copied
from unpoison.compute.checkpoints import Checkpoints
from unpoison.compute.muon import orthogonalised
from unpoison.core.content_store import ContentStore, read_kept, write_kept
from unpoison.core.errors import ParameterError, UserError
from unpoison.core.sharded import in_turn
from unpoison.data.imageset import ImageSet
from unpoison.variations import VARIATIONS, prior_training, schedule
from unpoison.variations import prior as prior_module
from unpoison.variations.colour import match_colours
from unpoison.variations.generate import generate, names_of
from unpoison.variations.optimizer import Optimizer
from unpoison.variations.prior import Prior, load_prior, save_prior
from unpoison.variations.prior_training import PriorRecipe, train_prior
from unpoison.variations.sampling import BATCH, Settings, check_strength
from unpoison.variations.sampling import vary as vary_by
from unpoison.variations.sdedit import make_scheduler

RECIPE = PriorRecipe(steps=12, batch_size=16, channels=[8, 8], unshuffle=4, checkpoint_every=4)
CPU = torch.device("cpu")
Trained = tuple[Prior, list[dict[str, float]]]
ONE, TWO, RAW = Settings(), Settings(num_variations=2), Settings(color_transfer=False)
# Of diffusers and NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


def sampler(strength: float = 0.6, steps: int = 10, scheduler: str = "ddim") -> dict[str, Any]:
    """Parameters of `sdedit`."""
    return {"strength": strength, "steps": steps, "scheduler": scheduler}


def vary(
    prior: Prior, images: Tensor, keys: list[int], own: dict[str, Any], settings: Settings = ONE, *, seed: int = 0
) -> Tensor:
    """Variations by `sdedit`."""
    return vary_by(VARIATIONS["sdedit"], prior, images, keys, settings, own, seed=seed, device=CPU)


@pytest.fixture(scope="module")
def prior(splits: dict[str, ImageSet], tmp_path_factory: pytest.TempPathFactory) -> Prior:
    scratch = tmp_path_factory.mktemp("prior") / "scratch"
    recipe = PriorRecipe(steps=24, batch_size=32, unshuffle=2, channels=[8, 16], checkpoint_every=12)
    trained, rows = train_prior(splits["public"], recipe, seed=0, scratch=scratch)
    assert [row["step"] for row in rows] == [12, 24]
    assert rows[1]["loss"] < rows[0]["loss"]
    assert not scratch.exists()
    return trained


@pytest.fixture(scope="module")
def whole(splits: dict[str, ImageSet], tmp_path_factory: pytest.TempPathFactory) -> Trained:
    """A training that nothing stopped."""
    return train_prior(splits["public"], RECIPE, seed=0, scratch=tmp_path_factory.mktemp("whole") / "scratch")


def test_images_that_are_read_step_by_step_are_the_same(
    splits: dict[str, ImageSet], whole: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(prior_training, "HELD", 0)
    assert train_prior(splits["public"], RECIPE, seed=0, scratch=tmp_path / "scratch")[1] == whole[1]


def test_a_killed_run_goes_on_and_ends_with_the_same_bytes(
    splits: dict[str, ImageSet], whole: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained_whole, rows = whole
    steps_done = []
    real = prior_training._update_average

    def stop_at_ten(*arguments: object) -> None:
        steps_done.append(1)
        if len(steps_done) == 10:
            raise KeyboardInterrupt
        real(*arguments)  # type: ignore[arg-type]

    monkeypatch.setattr(prior_training, "_update_average", stop_at_ten)
    with pytest.raises(KeyboardInterrupt):
        train_prior(splits["public"], RECIPE, seed=0, scratch=tmp_path / "b")
    resumed, resumed_rows = train_prior(splits["public"], RECIPE, seed=0, scratch=tmp_path / "b")
    assert len(steps_done) == 10 + 4  # from the checkpoint at step 8, not from the start
    assert rows == resumed_rows
    for a, b in zip(trained_whole.unet.parameters(), resumed.unet.parameters(), strict=True):
        assert torch.equal(a, b)


def stopped(public: ImageSet, scratch: Path, after: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """A training that is cut off in a step."""
    done: list[int] = []
    real = prior_training._update_average

    def stop(*arguments: object) -> None:
        done.append(1)
        if len(done) == after:
            raise KeyboardInterrupt
        real(*arguments)  # type: ignore[arg-type]

    with monkeypatch.context() as patch:
        patch.setattr(prior_training, "_update_average", stop)
        with pytest.raises(KeyboardInterrupt):
            train_prior(public, RECIPE, seed=0, scratch=scratch)


@pytest.mark.parametrize("damage", ["newest", "all", "shapes"])
def test_a_damaged_checkpoint_costs_time_and_nothing_else(
    splits: dict[str, ImageSet],
    whole: Trained,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    damage: str,
) -> None:
    trained_whole, rows = whole
    scratch = tmp_path / "b"
    stopped(splits["public"], scratch, 10, monkeypatch)
    older, newest = sorted(scratch.glob("*.npz"))
    if damage == "shapes":
        # Whole, and of another network.
        for path in (older, newest):
            kept = read_kept(path)
            assert kept is not None
            write_kept(path, {name: value for name, value in kept.items() if name != "unet.conv_in.bias"})
    else:
        for path in (newest,) if damage == "newest" else (older, newest):
            content = bytearray(path.read_bytes())
            content[len(content) // 2] ^= 1
            path.write_bytes(content)
    # Of another step: a file whose place is not its own is none.
    (newest.with_name(newest.name.replace("08", "09"))).write_bytes(older.read_bytes())
    resumed, resumed_rows = train_prior(splits["public"], RECIPE, seed=0, scratch=scratch)
    assert ("from the checkpoint at step 4" in capsys.readouterr().out) == (damage == "newest")
    assert rows == resumed_rows
    for a, b in zip(trained_whole.unet.parameters(), resumed.unet.parameters(), strict=True):
        assert torch.equal(a, b)
    assert not scratch.exists()


def test_two_processes_train_one_prior_in_one_folder(
    splits: dict[str, ImageSet], whole: Trained, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    trained_whole, rows = whole
    real, scratch = Checkpoints.save, tmp_path / "b"
    others: list[list[dict[str, float]]] = []

    def save(self: Checkpoints, tensors: Mapping[str, Tensor], given: list[dict[str, float]]) -> None:
        # In the middle of one, another comes, goes on from what is there, and removes it at its end.
        if not others:
            others.append([])
            others[0] = train_prior(splits["public"], RECIPE, seed=0, scratch=scratch)[1]
        real(self, tensors, given)

    monkeypatch.setattr(Checkpoints, "save", save)
    trained, trained_rows = train_prior(splits["public"], RECIPE, seed=0, scratch=scratch)
    assert others == [rows]
    assert trained_rows == rows
    for a, b in zip(trained_whole.unet.parameters(), trained.unet.parameters(), strict=True):
        assert torch.equal(a, b)


def test_prior_round_trip_and_tampering(prior: Prior, tmp_path: Path) -> None:
    save_prior(prior, tmp_path / "p", made_by={})
    again = load_prior(tmp_path / "p")
    x, t = torch.rand(1, 12, 16, 16), torch.tensor([5])
    assert torch.allclose(prior.unet(x, t), again.unet(x, t), atol=1e-5)
    path = tmp_path / "p" / "model.safetensors"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(UserError, match="digest mismatch"):
        load_prior(tmp_path / "p")


def test_impossible_priors_are_refused(splits: dict[str, ImageSet], tmp_path: Path) -> None:
    with pytest.raises(ParameterError, match=r"^channels: \[8, 8, 8, 8, 8\] with unshuffle 4 given"):
        train_prior(splits["public"], PriorRecipe(channels=[8] * 5, unshuffle=4), seed=0, scratch=tmp_path)
    with pytest.raises(ParameterError, match=r"^channels: \[12\] given, allowed: one to eight multiples of 8"):
        train_prior(splits["public"], PriorRecipe(channels=[12]), seed=0, scratch=tmp_path)
    with pytest.raises(ParameterError, match=r"^images: 0 given, allowed: at least 10"):
        train_prior(splits["public"].subset(np.arange(0)), PriorRecipe(), seed=0, scratch=tmp_path)


def test_more_noise_than_the_prior_knows_is_refused(prior: Prior, splits: dict[str, ImageSet]) -> None:
    modest = Prior(prior.unet, prior.unshuffle, max_strength=0.4)
    with pytest.raises(
        ParameterError, match=r"^strength: 0\.6 given, allowed: up to prior\.max_strength 0\.4, the most"
    ):
        generate(splits["test"], "sdedit", modest, ONE, sampler(), seed=0, store=ContentStore(None))
    with pytest.raises(ParameterError, match=r"^again: 0\.5 given, allowed: up to prior\.max_strength 0\.4, the most"):
        check_strength(0.4, {"strength": 0.4, "again": 0.5})


def test_loss_weights_stop_at_five() -> None:
    weights = schedule.min_snr_weights(torch.tensor([0.99, 0.5, 0.2]))
    assert weights.tolist() == pytest.approx([5.0, 1.0, 0.25])


def test_schedule_is_that_of_the_samplers() -> None:
    samplers, left = make_scheduler(**sampler())[0], schedule.alphas_cumprod()
    assert torch.allclose(left, samplers.alphas_cumprod, atol=1e-6)
    clean, noise, at = torch.rand(3, 12, 4, 4), torch.randn(3, 12, 4, 4), torch.tensor([0, 499, 999])
    noised = schedule.noised(clean, noise, left[at])
    assert torch.allclose(noised, samplers.add_noise(clean, noise, at), atol=1e-6)


@pytest.mark.parametrize("shape", [(24, 60), (60, 24)])
def test_orthogonalised_keeps_directions_and_evens_their_sizes(shape: tuple[int, int]) -> None:
    generator = torch.Generator().manual_seed(0)
    matrix = torch.randn(*shape, generator=generator, dtype=torch.float64)
    u, _, v = torch.linalg.svd(matrix, full_matrices=False)
    inside = u.T @ orthogonalised(matrix, 5) @ v.T
    assert (inside - inside.diag().diag()).abs().max() < 1e-6
    assert 0.6 < inside.diag().min() < inside.diag().max() < 1.3
    # One step, by its formula.
    x = matrix / matrix.norm()
    once = 3.4445 * x - 4.7750 * x @ x.T @ x + 2.0315 * x @ x.T @ x @ x.T @ x
    assert torch.allclose(orthogonalised(matrix, 1), once, atol=1e-6)
    assert torch.equal(orthogonalised(torch.zeros(*shape), 3), torch.zeros(*shape))


def test_optimizer_steps_filters_by_muon_and_the_rest_by_adamw(prior: Prior) -> None:
    ours, torchs = deepcopy(prior.unet), deepcopy(prior.unet)
    optimizer, adamw = Optimizer(ours), torch.optim.AdamW(torchs.parameters(), 1e-3)
    generator = torch.Generator().manual_seed(0)
    before = ours.mid.conv1.weight.detach().clone()
    for number in (1, 2):
        for a, b in zip(ours.parameters(), torchs.parameters(), strict=True):
            a.grad = torch.randn(a.shape, generator=generator)
            b.grad = a.grad.clone()
        optimizer.step(1e-3, number)
        adamw.step()
        if number == 1:
            # The momentum of a first gradient is its tenth, and all of the two point the same way.
            assert ours.mid.conv1.weight.grad is not None
            update = orthogonalised(ours.mid.conv1.weight.grad.flatten(1), 3) * 0.2 * (16 * 9) ** 0.5
            expected = before * (1 - 1e-5) - 1e-3 * update.view(before.shape)
            assert torch.allclose(ours.mid.conv1.weight, expected, atol=1e-6)
    theirs = dict(torchs.named_parameters())
    for name, value in ours.named_parameters():
        as_adamw = torch.allclose(value, theirs[name], atol=1e-6)
        assert as_adamw == (value.ndim < 4 or name.startswith("conv_")), name


def test_encode_and_decode_are_inverse(prior: Prior) -> None:
    images = torch.rand(2, 3, 32, 32)
    assert prior.encode(images).shape == (2, 12, 16, 16)
    assert torch.allclose(prior.decode(prior.encode(images)), images, atol=1e-6)


@pytest.mark.parametrize("scheduler", ["ddim", "dpmsolver++"])
def test_variation_depends_on_image_and_key_only(scheduler: str, prior: Prior, splits: dict[str, ImageSet]) -> None:
    own = sampler(0.5, 4, scheduler)
    images, keys = splits["test"].tensor(np.arange(5)), [10, 11, 12, 13, 14]
    together = vary(prior, images, keys, own, TWO)
    assert together.shape == (5, 2, 3, 32, 32)
    order = [3, 0, 4]
    apart = vary(prior, images[order], [keys[i] for i in order], own, TWO)
    assert torch.equal(apart, together[order])
    assert not torch.equal(together[:, 0], together[:, 1])
    assert not torch.equal(vary(prior, images, keys, own, TWO, seed=1), together)


def test_batch_is_full_and_the_same_anywhere_in_it(prior: Prior, splits: dict[str, ImageSet]) -> None:
    images = splits["train"].tensor(np.arange(BATCH))
    full = vary(prior, images, list(range(BATCH)), sampler(0.5, 4))
    last = vary(prior, images[-1:], [BATCH - 1], sampler(0.5, 4))
    assert torch.equal(full[-1], last[0])


def test_strength_starts_where_it_says_and_more_of_it_changes_more(prior: Prior, splits: dict[str, ImageSet]) -> None:
    for name in ("ddim", "dpmsolver++"):
        timesteps = make_scheduler(**sampler(0.6, 10, name))[1]
        assert len(timesteps) == 6
        assert abs(int(timesteps[0]) - 600) <= 1
    with pytest.raises(ParameterError, match=r"^strength: 0\.05 given; with steps 10 no step"):
        make_scheduler(**sampler(0.05, 10))
    images = splits["test"].tensor(np.arange(16))
    distance = []
    for strength in (0.1, 0.4, 0.8):
        made = vary(prior, images, list(range(16)), sampler(strength), RAW)[:, 0]
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


def test_a_set_is_varied_once_and_then_only_what_changed(
    prior: Prior, splits: dict[str, ImageSet], tmp_path: Path
) -> None:
    own = sampler(0.5, 2)
    data = splits["test"].subset(np.arange(BATCH + 6))
    kept = Prior(prior.unet, prior.unshuffle, prior.max_strength, digest="p")
    first = generate(data, "sdedit", kept, TWO, own, seed=0, store=ContentStore(tmp_path))
    assert (first.made, first.reused) == (BATCH + 6, 0)
    variations = first.gather()
    assert variations.shape == (BATCH + 6, 2, 32, 32, 3)
    last = np.array([BATCH + 5])
    alone = vary(prior, data.tensor(last), last.tolist(), own, TWO)
    assert (variations[last] == alone.permute(0, 1, 3, 4, 2).numpy()).all()
    changed = ImageSet(data.base.copy(), data.labels, data.classes)
    changed.base[3] ^= 1
    again = generate(changed, "sdedit", kept, TWO, own, seed=0, store=ContentStore(tmp_path))
    assert (again.made, again.reused) == (1, BATCH + 5)
    same = np.arange(BATCH + 6) != 3
    assert (again.gather()[same] == variations[same]).all()
    # Another seed, another prior: nothing of what is kept is of use. One image suffices to tell.
    one = data.subset(np.arange(1))
    other = Prior(prior.unet, prior.unshuffle, prior.max_strength, digest="q")
    assert generate(one, "sdedit", other, TWO, own, seed=0, store=ContentStore(tmp_path)).made == 1
    assert generate(one, "sdedit", kept, TWO, own, seed=1, store=ContentStore(tmp_path)).made == 1
    assert generate(one, "sdedit", kept, TWO, own, seed=0, store=ContentStore(tmp_path)).made == 0


def test_whatever_images_depend_on_is_in_their_names(
    prior: Prior, splits: dict[str, ImageSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    data, own, store = splits["train"].subset(np.arange(3)), {"strength": 0.5, "steps": 4}, ContentStore(tmp_path)

    def made(settings: Settings | None = None, seed: int = 0, **other: Any) -> int:
        return generate(data, "sdedit", prior, settings or Settings(), own | other, seed=seed, store=store).made

    assert (made(), made()) == (3, 0)
    assert made(seed=1) == made(steps=6) == made(Settings(color_transfer=False)) == 3
    monkeypatch.setenv("UNPOISON_PRECISION", "auto")
    assert (made(), made()) == (3, 0)
    for name, other in (("digest_of", lambda path: f"edited {path.name}"), ("version", lambda library: "0")):
        monkeypatch.setattr(f"unpoison.variations.generate.{name}", other)
        assert (made(), made()) == (3, 0)


def test_a_worker_elsewhere_makes_the_same(prior: Prior, splits: dict[str, ImageSet], tmp_path: Path) -> None:
    data = splits["test"].subset(np.arange(BATCH + 6))
    here, there = (
        generate(
            data, "sdedit", prior, ONE, sampler(0.5, 2), seed=0, store=ContentStore(tmp_path / engine.__name__, engine)
        ).gather()
        for engine in (in_turn, copied)
    )
    assert (here == there).all()


def test_equal_images_under_other_keys_have_other_names() -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 4, 4, 3), dtype=np.uint8)
    images[1] = images[0]
    data = ImageSet(images, np.zeros(3, np.int64), ("a",))
    assert len(np.unique(names_of(data), axis=0)) == 3
    assert (names_of(data)[:2] == names_of(data.subset(np.arange(2)))).all()


# MNIST's size, the least, sides that differ, one that fits in one direction only; unshuffled by 2 and halved twice.
@pytest.mark.parametrize("shape", [(28, 28, 1), (8, 8, 3), (9, 13, 3), (32, 20, 1)])
def test_sides_that_do_not_fit_are_padded_and_cut_back(shape: tuple[int, int, int], tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (12, *shape), dtype=np.uint8)
    data = ImageSet(images, np.arange(12) % 3, ("a", "b", "c"))
    recipe = PriorRecipe(steps=2, batch_size=4, unshuffle=2, channels=[8, 8, 8])
    trained, rows = train_prior(data, recipe, seed=0, scratch=tmp_path / "scratch")
    assert np.isfinite([row["loss"] for row in rows]).all()
    save_prior(trained, tmp_path / "p", made_by={})
    again = load_prior(tmp_path / "p")
    floats = data.tensor().float() / 255
    latents = again.encode(floats)
    assert latents.shape == (12, 4 * shape[2], -(-shape[0] // 8) * 4, -(-shape[1] // 8) * 4)
    assert torch.allclose(again.decode(latents, shape[:2]), floats, atol=1e-6)
    varied = vary(again, data.tensor(np.arange(3)), [0, 1, 2], sampler(0.5, 2), RAW)
    assert varied.shape == (3, 1, shape[2], shape[0], shape[1])


def test_padding_repeats_the_border_and_leaves_what_fits() -> None:
    images = torch.arange(6.0).view(1, 1, 2, 3)
    assert prior_module.padded(images, 4)[0, 0].tolist() == [[0, 1, 2, 2], [3, 4, 5, 5], [3, 4, 5, 5], [3, 4, 5, 5]]
    assert prior_module.padded(images[..., :2], 2).shape == (1, 1, 2, 2)
    square = torch.rand(1, 3, 8, 8)
    assert prior_module.padded(square, 8) is square


def test_a_prior_that_diverges_ends_with_one_line(
    splits: dict[str, ImageSet], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    said = (
        r"^lr: \S+ given, with which the training of the prior diverged: the loss is not finite from step \d+ of 12 on"
    )
    with pytest.raises(ParameterError, match=said):
        train_prior(splits["public"], replace(RECIPE, lr=1e30), seed=0, scratch=tmp_path / "a")
    # The last step's damage, which no loss shows.
    real, calls = prior_training._update_average, []

    def damage(average: Any, unet: Any, decay: float) -> None:
        real(average, unet, decay)
        calls.append(1)
        if len(calls) == 4:
            average.conv_out.bias.data[0] = torch.inf

    monkeypatch.setattr(prior_training, "_update_average", damage)
    with pytest.raises(ParameterError, match=r"diverged: 1 tensors are not finite after step 4 of 12 \("):
        train_prior(splits["public"], RECIPE, seed=0, scratch=tmp_path / "b")
    assert not list((tmp_path / "b").rglob("rows.json"))


@pytest.mark.parametrize("scheduler", ["ddim", "dpmsolver++"])
@pytest.mark.parametrize("value", [torch.nan, torch.inf])
def test_variations_that_are_not_finite_become_no_image(
    value: float, scheduler: Any, prior: Prior, splits: dict[str, ImageSet]
) -> None:
    broken = deepcopy(prior)
    broken.unet.conv_out.bias.data[0] = value
    with pytest.raises(UserError, match="variations: 2 of 2 images are not finite, allowed: those of a model"):
        vary(broken, splits["test"].tensor(np.arange(2)), [0, 1], sampler(0.5, 2, scheduler))
