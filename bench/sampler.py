"""Variations/s of the sampler, and training images/s of its prior, against the plain code people write: in the same run.

    python bench/sampler.py            # prints a table and adds it to bench/results/sampler.csv
    python bench/sampler.py --quick    # whether it runs

The prior and the sampler are the default run's (`params.yaml`), the prior after one step of training, as its speed does not depend
on its weights. What they are held against, with as many passes, in fp32:

- `plain`: an image-to-image loop in the manner of diffusers' pipelines, one image at a time, with the prior's own network: encode,
  noise, as many steps of diffusers' scheduler, decode, the source's colours, a PIL image;
- `diffusers`: its DDIMPipeline, which begins with noise, called batch by batch, with its U-Net of the prior's channels on the same
  latents;
- `diffusers training`: the same U-Net with its scheduler's noise, AdamW, its moving average, and a DataLoader of PIL images.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
import yaml
from diffusers import DDIMPipeline, DDIMScheduler, UNet2DModel
from diffusers.training_utils import EMAModel
from PIL import Image
from torch import nn
from torch.utils.data import DataLoader, RandomSampler
from torchvision.transforms.functional import to_tensor

from pairs import ROOT, arguments, by_turns, report, row, timed
from unpoison.compute.device import autocast, pick_device
from unpoison.core.content_store import ContentStore
from unpoison.data.imageset import ImageSet
from unpoison.sources import digits
from unpoison.variations import VARIATIONS
from unpoison.variations.colour import match_colours
from unpoison.variations.generate import generate
from unpoison.variations.prior import Prior
from unpoison.variations.prior_training import PriorRecipe, train_prior
from unpoison.variations.sampling import BATCH, Settings
from unpoison.variations.schedule import SCHEDULE
from unpoison.variations.sdedit import make_scheduler

IMAGES = 4 * BATCH
LOOP = 64  # images of the plain loop, which are enough: each takes as long as any other
STEPS = 100  # of the training


@torch.no_grad()
def plain(prior: Prior, pictures: list[Image.Image], settings: Settings, passes: int) -> list[Image.Image]:
    device, varied = pick_device(), []
    for picture in pictures:
        scheduler, timesteps = make_scheduler(strength=0.5, steps=2 * passes, scheduler="ddim")
        source = to_tensor(picture)[None].to(device)
        latent = prior.encode(source)
        x = scheduler.add_noise(latent, torch.randn_like(latent), timesteps[:1])
        for timestep in timesteps:
            predicted = prior.unet(x, timestep[None].to(device))
            x = scheduler.step(predicted, timestep, x).prev_sample
        image = prior.decode(x, (picture.height, picture.width))
        if settings.color_transfer:
            image = match_colours(image, source)
        pixels = (image[0] * 255).round().byte().permute(1, 2, 0)
        varied.append(Image.fromarray(pixels.cpu().numpy()))
    return varied


def diffusers_unet(recipe: PriorRecipe, channels: int, side: int) -> UNet2DModel:
    """Diffusers' U-Net with the prior's channels, on its latents."""
    levels, latents = len(recipe.channels), channels * recipe.unshuffle**2
    return UNet2DModel(
        sample_size=side // recipe.unshuffle,
        in_channels=latents,
        out_channels=latents,
        layers_per_block=1,
        block_out_channels=tuple(recipe.channels),
        down_block_types=("DownBlock2D",) * levels,
        up_block_types=("UpBlock2D",) * levels,
    ).to(pick_device())


def by_pipeline(pipeline: DDIMPipeline, images: int, passes: int) -> None:
    for _ in range(images // BATCH):
        latents = pipeline(batch_size=BATCH, num_inference_steps=passes, output_type="np").images
        (latents * 255).round().astype(np.uint8)


def plain_training(unet: nn.Module, data: ImageSet, recipe: PriorRecipe, steps: int) -> None:
    device, scheduler = pick_device(), DDIMScheduler(**SCHEDULE)
    pictures = [Image.fromarray(image) for image in data.gather(np.arange(len(data)))]
    loader = DataLoader(
        pictures,  # type: ignore[arg-type]
        recipe.batch_size,
        sampler=RandomSampler(pictures, replacement=True, num_samples=steps * recipe.batch_size),
        collate_fn=lambda batch: torch.stack([to_tensor(picture) for picture in batch]),
    )
    optimizer, average = torch.optim.AdamW(unet.parameters(), lr=1e-3), EMAModel(unet.parameters(), recipe.ema_decay)
    unet.train()
    for images in loader:
        clean = F.pixel_unshuffle(images.to(device) * 2 - 1, recipe.unshuffle)
        at = torch.randint(1000, (len(clean),), device=device)
        noisy = scheduler.add_noise(clean, torch.randn_like(clean), at)  # type: ignore[arg-type]
        with autocast(device):
            loss = F.mse_loss(unet(noisy, at).sample.float(), clean)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        average.step(unet.parameters())


def ours_training(data: ImageSet, recipe: PriorRecipe, steps: int) -> Prior:
    with tempfile.TemporaryDirectory() as scratch:
        return train_prior(data, replace(recipe, steps=steps), seed=0, scratch=Path(scratch) / "prior")[0]


def ways_of(quick: bool) -> list[tuple[str, dict[str, Callable[[], float]]]]:
    """What is measured, in words, and the rates of ours and of what that is held against."""
    images, loop, steps = (BATCH, 4, 2) if quick else (IMAGES, LOOP, STEPS)
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    made = digits.build({"train": images, "test": 10, "reserve": 10, "public": 100})
    data, public = (ImageSet(*made[name], digits.CLASSES) for name in ("train", "public"))
    recipe = PriorRecipe(**{key: value for key, value in params["prior"].items() if key != "images"})
    prior = ours_training(public, recipe, 1)
    # A copy, as the sampler lays its network out anew; contiguous, as networks are by default.
    theirs = replace(prior, unet=deepcopy(prior.unet).to(device=pick_device(), memory_format=torch.contiguous_format))
    name = params["variations"]["method"]
    settings = Settings(
        **{key: value for key, value in params["variations"].items() if key not in ("enabled", "method")}
    )
    own: dict[str, Any] = yaml.safe_load((ROOT / "params" / "variations.yaml").read_text(encoding="utf-8"))[name]
    passes, copies = VARIATIONS[name].evaluations(**own), settings.num_variations
    pictures = [Image.fromarray(image) for image in data.gather(np.arange(loop))]
    unet = diffusers_unet(recipe, data.channels, data.image_size[0])
    pipeline = DDIMPipeline(unet=unet, scheduler=DDIMScheduler(**SCHEDULE))
    pipeline.set_progress_bar_config(disable=True)

    def ours() -> None:
        generate(data, name, prior, settings, own, seed=0, store=ContentStore(None))

    sampling = {
        "ours": lambda: copies * images / timed(ours),
        "plain": lambda: loop / timed(lambda: plain(theirs, pictures, settings, passes)),
        "diffusers": lambda: images / timed(lambda: by_pipeline(pipeline, images, passes)),
    }
    seen = steps * recipe.batch_size
    training = {
        "ours": lambda: seen / timed(lambda: ours_training(public, recipe, steps)),
        "diffusers training": lambda: seen / timed(lambda: plain_training(unet, public, recipe, steps)),
    }
    return [(f"sampler, {name}, {passes} passes", sampling), ("training of the prior", training)]


def main() -> None:
    given = arguments(__doc__, runs=5)
    rows = []
    for what, ways in ways_of(given.quick):
        if not given.quick:
            by_turns(ways, 1)  # the first passes of a process are slow
        rates = by_turns(ways, given.runs)
        rows += [row(what, rates, "ours", way) for way in ways if way != "ours"]
    report(rows, "sampler.csv", write=not given.quick)


if __name__ == "__main__":
    main()
