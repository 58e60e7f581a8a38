"""The methods that vary images: what they share, and each on cases small enough to reckon by hand."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from unpoison.data.imageset import ImageSet
from unpoison.variations import VARIATIONS
from unpoison.variations.denoising import Denoiser, Noise, timesteps
from unpoison.variations.prior import Prior
from unpoison.variations.sampling import BATCH, Settings, vary
from unpoison.variations.schedule import alphas_cumprod
from unpoison.variations.similarity import similarity
from unpoison.variations.unet import UNet
from unpoison.variations.zip import _projections

CPU = torch.device("cpu")
LOCAL = [name for name, method in VARIATIONS.items() if method.pipeline is None]
SHORT: dict[str, dict[str, Any]] = {
    "sdedit": {"strength": 0.5, "steps": 4},
    "pure_gen": {"steps": 3},
    "samp_detox": {"steps": 3},
    "data_elixir": {"steps": 3, "rounds": 2, "kept": 2},
    "zip": {"strength": 0.5, "steps": 3},
}
# Of diffusers and NumPy 2.
pytestmark = pytest.mark.filterwarnings("ignore:__array__ implementation:DeprecationWarning")


class Told(UNet):
    """A network that predicts what it is told: `answer` of the noisy pixels and their timesteps."""

    def __init__(self, answer: Callable[[Tensor, Tensor], Tensor]) -> None:
        super().__init__(3, [8])
        self.answer = answer

    def forward(self, noisy: Tensor, at: Tensor) -> Tensor:
        return self.answer(noisy, at)


def told(answer: Callable[[Tensor, Tensor], Tensor]) -> Denoiser:
    return Denoiser(Prior(Told(answer), 1, 1.0))


@pytest.fixture(scope="module")
def prior() -> Prior:
    torch.manual_seed(0)
    unet = UNet(12, [8, 8]).eval()
    torch.nn.init.normal_(unet.conv_out.weight, std=0.05)
    return Prior(unet, 2, 1.0)


@pytest.mark.parametrize("name", LOCAL)
def test_what_an_image_becomes_depends_on_it_and_its_key_alone(
    name: str, prior: Prior, splits: dict[str, ImageSet]
) -> None:
    method = VARIATIONS[name]
    own = method.whole(SHORT[name])
    images, keys = splits["test"].tensor(np.arange(4)), [10, 11, 12, 13]

    def made(images: Tensor, keys: list[int], seed: int = 0) -> Tensor:
        return vary(method, prior, images, keys, Settings(num_variations=2), own, seed=seed, device=CPU)

    together = made(images, keys)
    assert together.shape == (4, 2, 3, 32, 32)
    assert together.dtype == torch.uint8
    assert torch.equal(made(images[[3, 1]], [13, 11]), together[[3, 1]])
    assert not torch.equal(together[:, 0], together[:, 1])
    assert not torch.equal(made(images, keys, seed=1), together)


@pytest.mark.parametrize("name", LOCAL)
@pytest.mark.parametrize("shape", [(28, 28, 1), (9, 13, 3)])
def test_any_size_and_one_channel(name: str, shape: tuple[int, int, int]) -> None:
    prior = Prior(UNet(4 * shape[2], [8, 8]).eval(), 2, 1.0)
    images = torch.randint(
        0, 256, (2, shape[2], *shape[:2]), dtype=torch.uint8, generator=torch.Generator().manual_seed(0)
    )
    own = VARIATIONS[name].whole(SHORT[name])
    made = vary(VARIATIONS[name], prior, images, [0, 1], Settings(), own, seed=0, device=CPU)
    assert made.shape == (2, 1, shape[2], *shape[:2])


@pytest.mark.parametrize("name", LOCAL)
def test_evaluations_are_those_that_were_made(name: str, prior: Prior) -> None:
    denoiser, method = Denoiser(prior), VARIATIONS[name]
    own = method.whole(SHORT[name])
    with torch.inference_mode():
        method.vary(denoiser, torch.rand(2, 3, 8, 8), Noise(0, [0, 1], 0, size=2, device=CPU), **own)
    assert denoiser.evaluations == method.evaluations(**own)


@pytest.mark.parametrize("name", LOCAL)
def test_a_prediction_that_is_not_finite_is_noted(name: str, prior: Prior) -> None:
    def damaged(noisy: Tensor, at: Tensor) -> Tensor:
        clean = torch.zeros_like(noisy)
        clean[1, 0, 0, 0] = torch.inf
        return clean

    denoiser, method = told(damaged), VARIATIONS[name]
    noise = Noise(0, [0, 1], 0, size=2, device=CPU)
    method.vary(denoiser, torch.rand(2, 3, 8, 8), noise, **method.whole(SHORT[name]))
    assert denoiser.finite is not None
    assert denoiser.finite.tolist() == [True, False]


def test_a_batch_is_filled_up() -> None:
    assert Noise(0, [4, 5], 0, size=BATCH, device=CPU).normal(2, 3).shape == (BATCH, 2, 3)
    first = Noise(0, [4, 5], 0, size=3, device=CPU)
    drawn = first.normal(2), first.normal(2)
    assert not torch.equal(*drawn)
    assert drawn[0][2].tolist() == [0, 0]
    # The numbers of an image are its own, whoever stands beside it.
    alone = Noise(0, [5], 0, size=1, device=CPU)
    assert torch.equal(alone.normal(2)[0], drawn[0][1])
    assert torch.equal(alone.normal(2)[0], drawn[1][1])


def test_timesteps_are_even_and_end_above_nothing() -> None:
    assert timesteps(0.25, 5) == [249, 199, 149, 99, 49]
    assert timesteps(0.12, 120) == list(range(119, -1, -1))
    # No more steps than there are timesteps.
    assert timesteps(0.002, 5) == [1, 0]
    assert timesteps(1e-9, 5) == [0]


def test_the_noise_of_published_steps() -> None:
    """Strengths whose noise is that of steps 75, 120 and 150 of the linear schedule of 1,000 from 1e-4 to 0.02."""
    linear = torch.cumprod(1 - torch.linspace(1e-4, 0.02, 1000, dtype=torch.float64), 0)
    ours = alphas_cumprod()
    for name, step in (("pure_gen", 75), ("samp_detox", 120), ("data_elixir", 150)):
        strength = VARIATIONS[name].whole({})["strength"]
        assert float(ours[timesteps(strength, 1)[0]]) == pytest.approx(float(linear[step - 1]), abs=0.012), name


def test_an_ancestral_step_by_hand() -> None:
    """The posterior of DDPM between any two steps, in numbers; of adjacent ones that of Ho et al., eq. 7."""
    denoiser = told(lambda noisy, at: torch.full_like(noisy, 0.5))
    noise, again = (Noise(0, [3], 0, size=1, device=CPU) for _ in range(2))
    noisy = torch.full((1, 3, 2, 2), 0.8)
    after, clean = denoiser.ancestral(noisy, 300, 299, noise)
    left = alphas_cumprod().double()
    beta = 1 - left[300] / left[299]
    mean = left[299].sqrt() * beta / (1 - left[300]) * 0.5
    mean = mean + (1 - beta).sqrt() * (1 - left[299]) / (1 - left[300]) * 0.8
    spread = ((1 - left[299]) / (1 - left[300]) * beta).sqrt()
    assert torch.allclose(after, (mean + spread * again.normal(3, 2, 2)).float(), atol=1e-5)
    assert (clean == 0.5).all()
    # Nothing is added at the end: the prediction is what is left, and it lies in the range of images.
    ended, _ = told(lambda noisy, at: torch.full_like(noisy, 3.0)).ancestral(noisy, 0, -1, noise)
    assert (ended == 1).all()


def test_similarity() -> None:
    images = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    assert torch.allclose(similarity(images, images), torch.ones(2, 16, 16), atol=1e-5)
    # Of flat images the luminance alone counts: (2ab + C1) / (a^2 + b^2 + C1).
    flat = [torch.full((1, 1, 12, 12), value) for value in (0.2, 0.6)]
    expected = (2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4)
    assert similarity(*flat)[0, 5, 5].item() == pytest.approx(expected, abs=1e-4)
    # What was changed is where it is least.
    stamped = images[:1].clone()
    stamped[:, :, 12:, 12:] = 1 - stamped[:, :, 12:, 12:]
    row, column = divmod(int(similarity(images[:1], stamped)[0].argmin()), 16)
    assert min(row, column) >= 11


def test_samp_detox_adds_noise_where_the_first_round_changed_most() -> None:
    """A prior that makes everything mid-grey: a grey image with a white corner comes back without it, and so does the noise."""
    seen: list[Tensor] = []

    def grey(noisy: Tensor, at: Tensor) -> Tensor:
        seen.append(noisy.clone())
        return torch.zeros_like(noisy)

    images = torch.full((1, 3, 24, 24), 0.5)
    images[..., 20:, 20:] = 1.0
    method = VARIATIONS["samp_detox"]
    noise = Noise(0, [0], 0, size=1, device=CPU)
    made = method.vary(told(grey), images, noise, strength=0.2, again=0.4, steps=2)
    assert torch.allclose(made, torch.full_like(made, 0.5))
    # The first step of the second round: noise in the corner, the image as the first round left it far away from there.
    second = seen[2][0]
    assert second[:, 21:, 21:].abs().mean() > 0.1
    assert (second[:, :8, :8] == 0).all()


def test_zip_keeps_what_its_operations_see() -> None:
    """Grey tones and coarse colours are the image's at the noisy end; a checkerboard of two pixels is seen by neither."""
    pixels = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(0)) * 2 - 1
    grey, blocks = _projections(pixels, 2)
    assert torch.allclose(grey, pixels.mean(1, keepdim=True).expand_as(pixels))
    assert blocks[0, 0, :2, :2].unique().numel() == 1
    assert blocks[0, 0, 0, 0].item() == pytest.approx(pixels[0, 0, :2, :2].mean().item(), abs=1e-6)
    for projected in (grey, blocks):
        again = _projections(projected, 2)[0 if projected is grey else 1]
        assert torch.allclose(again, projected, atol=1e-6)
    assert len(_projections(pixels[:, :1], 2)) == 1
    # In one step from nearly nothing but noise: half of each part is the image's, the other half the prior's, which is black.
    images = torch.rand(1, 3, 8, 8, generator=torch.Generator().manual_seed(1))
    noise = Noise(0, [0], 0, size=1, device=CPU)
    black = told(lambda noisy, at: torch.full_like(noisy, -1.0))
    made = VARIATIONS["zip"].vary(black, images, noise, strength=1.0, steps=1, scale=2, fading=10.0)
    grey, blocks = _projections(images * 2 - 1, 2)
    expected = ((grey + blocks) / 2 - 1 + 1) / 2 + 0.5
    # Each mended prediction is P x + (I - P)(-1); flat black has no part that an operation does not see.
    assert torch.allclose(made, expected.clamp(0, 1), atol=1e-4)


def test_data_elixir_takes_a_candidate_by_its_distance() -> None:
    """Rounds that end in ever darker images: the one at the place asked for, by the distance from the image."""
    shades = iter(np.linspace(0.8, -0.8, 9))
    denoiser = told(lambda noisy, at: torch.full_like(noisy, float(next(shades))))
    images = torch.full((1, 3, 12, 12), 0.95)
    own = {"strength": 0.2, "steps": 3, "rounds": 3, "kept": 1}
    made = VARIATIONS["data_elixir"].vary(denoiser, images, Noise(0, [0], 0, size=1, device=CPU), place=0.8, **own)
    # The image and three candidates, the last of each round: of these four the one at place int(0.8 * 4) = 3, the farthest.
    assert made.mean().item() == pytest.approx(0.1, abs=1e-5)
    shades = iter(np.linspace(0.8, -0.8, 9))
    near = VARIATIONS["data_elixir"].vary(denoiser, images, Noise(0, [0], 0, size=1, device=CPU), place=0.0, **own)
    assert torch.equal(near, images)
