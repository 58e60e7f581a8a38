"""The training of the diffusion prior. It survives a kill: it goes on from the last checkpoint and ends with the same bytes.

Ho et al., "Denoising Diffusion Probabilistic Models" (2020), with an exponential moving average of the weights. The network
predicts the image itself (x0; Salimans & Ho 2022, section 4): a small, briefly trained network that predicts the noise, or v,
leaves grain in the image.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Annotated

import torch
import torch.nn.functional as F
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor

from ..compute import muon
from ..compute.checkpoints import Checkpoints
from ..compute.device import autocast, pick_device, to_float
from ..compute.finite import not_finite
from ..core.code import digest_of
from ..core.errors import ParameterError
from ..core.files import sha256_json
from ..core.hyperparameters import LARGEST, Count, Positive
from ..core.progress import progress
from ..core.seeding import torch_rng
from ..data.imageset import ImageSet
from .optimizer import Optimizer
from .prior import Prior, padded
from .schedule import alphas_cumprod, min_snr_weights, noised
from .unet import GROUPS, UNet

HELD = 1 << 30
"""Bytes of images that are held in memory at most."""
# What says how it is trained: after an edit of one of them a checkpoint is of another training.
_CODE = [Path(__file__).parent / name for name in ("optimizer.py", "prior_training.py", "schedule.py", "unet.py")]
_CODE.append(Path(muon.__file__))


@dataclass(frozen=True, kw_only=True)
class PriorRecipe:
    """Network and training of the prior.

    Attributes:
        steps: steps of the optimiser.
        batch_size: images per step, drawn with replacement.
        lr: peak learning rate, reached after 5 % of the steps and lowered to 0 along a cosine.
        ema_decay: decay of the moving average of the weights; the average is what is kept.
        unshuffle: side of the pixel blocks moved to channels; 1 leaves the image as it is.
        channels: channels of the U-Net at each resolution, each half of the one before; multiples of 8.
        checkpoint_every: steps between checkpoints.
        max_strength: the most noise it is trained on, as a share of the schedule; variations may not ask for more. A
            prior that only ever denoises from half way need not learn to start from nothing.
    """

    steps: Count = 1000
    batch_size: Annotated[int, Ge(1), Le(65_536)] = 32
    lr: Positive = 5e-3
    ema_decay: Annotated[float, Gt(0), Lt(1)] = 0.99
    unshuffle: Annotated[int, Gt(0), Le(8)] = 4
    channels: list[Count] | tuple[int, ...] = (64, 96)
    checkpoint_every: Count = 50
    max_strength: Annotated[float, Gt(0), Le(1)] = 1.0


def train_prior(
    data: ImageSet, recipe: PriorRecipe, *, seed: int, scratch: Path
) -> tuple[Prior, list[dict[str, float]]]:
    """Train a prior; labels are not looked at.

    Args:
        data: images, trusted ones unless it is to learn what a trigger looks like.
        recipe: network and training.
        seed: seed for weights, batches and noise.
        scratch: folder for the checkpoints of this run alone, removed at the end.

    Returns:
        The prior, and a row per `checkpoint_every` steps: step, loss (mean since the last row).

    Raises:
        ParameterError: no image, channels or sides that do not fit, or a loss or weights that are not finite: training has
            diverged.
    """
    if not len(data):
        raise ParameterError("images: 0 given, allowed: at least 10 to train a prior on")
    check_recipe(recipe, data.image_size)
    device = pick_device()
    # torch draws initial weights from the global random state, which is put back afterwards.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch_rng(seed, "prior/weights").initial_seed())
        unet, average = (UNet(data.channels * recipe.unshuffle**2, list(recipe.channels)) for _ in range(2))
    average.load_state_dict(unet.state_dict())
    for network in (unet, average):
        network.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    optimizer = Optimizer(unet)
    # After a kill: weights, average, moments and rows as the last checkpoint has them.
    determined_by = sha256_json([data.digest, seed, asdict(recipe), [digest_of(path) for path in _CODE]])
    tensors = {f"unet.{name}": value for name, value in unet.state_dict().items()}
    tensors |= {f"average.{name}": value for name, value in average.state_dict().items()} | optimizer.state
    checkpoints = Checkpoints(scratch, determined_by, what="prior", unit="step")
    rows = checkpoints.load(tensors)
    first = int(rows[-1]["step"]) if rows else 0
    left = alphas_cumprod().to(device)
    noisiest = max(1, round(recipe.max_strength * len(left)))
    weights = min_snr_weights(left)
    # Each step draws from the whole set: in memory unless that is large.
    held, block = data.tensor() if data.base.nbytes <= HELD else None, _block(recipe)
    # On the device until the next row: reading a loss in each step would make the CPU wait for a GPU.
    losses: list[Tensor] = []
    unet.train()
    steps = range(first, recipe.steps)
    for step in progress(steps, what="prior", unit="step", total=recipe.steps, done=first):
        # A generator per step, so that a run which goes on from a checkpoint draws what it would have drawn.
        generator = torch_rng(seed, "prior/step", step)
        index = torch.randint(len(data), (recipe.batch_size,), generator=generator)
        images = to_float(data.tensor(index.numpy()) if held is None else held[index], device)
        clean = F.pixel_unshuffle(padded(images, block) * 2 - 1, recipe.unshuffle)
        noise = torch.randn(clean.shape, generator=generator).to(device)
        at = torch.randint(noisiest, (recipe.batch_size,), generator=generator).to(device)
        noisy = noised(clean, noise, left[at]).contiguous(memory_format=torch.channels_last)
        # The loss in x0: squared error of the predicted image, weighted by the noise of its timestep.
        with autocast(device):
            error = (unet(noisy, at).float() - clean).square().mean((1, 2, 3))
        loss = (weights[at] * error).mean()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step(recipe.lr * _warm_cosine(step, recipe.steps), step + 1)
        losses.append(loss.detach())
        # The decay rises to its value over the first steps, or the average would long remember the initial weights.
        _update_average(average, unet, min(recipe.ema_decay, (1 + step) / (10 + step)))
        if (step + 1) % recipe.checkpoint_every == 0 or step + 1 == recipe.steps:
            since, running = torch.stack(losses).tolist(), 0.0
            _check_trained(since, average, recipe, step + 1 - len(since))
            for value in since:  # one by one: from Python 3.12 on `sum` rounds otherwise
                running += value
            rows.append({"step": step + 1, "loss": running / len(since)})
            losses.clear()
            checkpoints.save(tensors, rows)
    # Sampling uses the average: single steps of a short training are noisy.
    checkpoints.remove()
    return Prior(average.eval(), recipe.unshuffle, recipe.max_strength), rows


def _check_trained(losses: list[float], average: UNet, recipe: PriorRecipe, first: int) -> None:
    """Raises ParameterError where one of the losses of the steps from `first` on, or of the weights kept, is not finite."""
    bad = next((first + place for place, loss in enumerate(losses) if not math.isfinite(loss)), None)
    fact = f"the loss is not finite from step {(bad or 0) + 1} of {recipe.steps} on"
    if bad is None:
        weights = not_finite(average)
        if not weights:
            return
        fact = (
            f"{len(weights)} tensors are not finite after step {first + len(losses)} of {recipe.steps} ({weights[0]})"
        )
    raise ParameterError(
        f"lr: {recipe.lr} given, with which the training of the prior diverged: {fact}; allowed: a lower one"
    )


def check_recipe(recipe: PriorRecipe, image_size: tuple[int, int] | None = None) -> None:
    """Raises ParameterError for channels that no U-Net has, or more halvings than sides of this size, where known, allow."""
    levels = len(recipe.channels)
    if not 1 <= levels <= 8 or any(width % GROUPS or width > 2048 for width in recipe.channels):
        given = f"{str(list(recipe.channels[:8]))[:-1]}, …]" if levels > 8 else list(recipe.channels)
        raise ParameterError(f"channels: {given} given, allowed: one to eight multiples of 8, up to 2048")
    if recipe.lr > LARGEST:
        raise ParameterError(f"lr: {recipe.lr} given, allowed: up to {LARGEST:g}")
    block = _block(recipe)
    # Smaller images would be padding for the most part.
    if image_size is not None and block > min(image_size):
        raise ParameterError(
            f"channels: {list(recipe.channels)} with unshuffle {recipe.unshuffle} given, allowed for sides {image_size}: "
            f"unshuffle * 2^(levels - 1), here {block}, up to {min(image_size)}"
        )


def _block(recipe: PriorRecipe) -> int:
    """The number that sides are padded to multiples of: unshuffling divides them, and each level but the last halves them."""
    return recipe.unshuffle * 2 ** (len(recipe.channels) - 1)


def _warm_cosine(step: int, steps: int) -> float:
    """Factor on the peak learning rate: linear over the first 5 % of the steps, then a cosine to 0."""
    warm = max(1, steps // 20)
    if step < warm:
        return (step + 1) / warm
    return 0.5 * (1 + math.cos(math.pi * (step - warm) / max(1, steps - warm)))


@torch.no_grad()
def _update_average(average: UNet, unet: UNet, decay: float) -> None:
    torch._foreach_lerp_(list(average.parameters()), list(unet.parameters()), 1 - decay)
