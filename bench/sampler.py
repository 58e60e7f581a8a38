"""Variations/s of the sampler against a plain image-to-image loop, one image at a time: in the same run.

    python bench/sampler.py            # prints a table and adds it to bench/results/sampler.csv
    python bench/sampler.py --quick    # whether it runs

The prior and the sampler are the default run's (`params.yaml`), the prior after one step of training, as its speed does not depend
on its weights. The plain loop follows diffusers' image-to-image pipelines: encode, noise, as many steps of the same scheduler,
decode, the source's colours, a PIL image.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from copy import deepcopy
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml
from PIL import Image
from torchvision.transforms.functional import to_tensor

from pairs import ROOT, arguments, by_turns, report, row, timed
from unpoison.compute.device import pick_device
from unpoison.core.content_store import ContentStore
from unpoison.data.imageset import ImageSet
from unpoison.sources import digits
from unpoison.variations.colour import match_colours
from unpoison.variations.generate import generate
from unpoison.variations.prior import Prior
from unpoison.variations.prior_training import PriorRecipe, train_prior
from unpoison.variations.sampling import BATCH, Settings
from unpoison.variations.sdedit import make_scheduler

SPLITS = {"train": 4 * BATCH, "public": 100}
LOOP = 64  # images of the plain loop, which are enough: each takes as long as any other


@torch.no_grad()
def plain(prior: Prior, pictures: list[Image.Image], settings: Settings, own: dict[str, Any]) -> list[Image.Image]:
    device, varied = pick_device(), []
    for picture in pictures:
        scheduler, timesteps = make_scheduler(**own)
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


def ways_of(images: int, loop: int) -> tuple[str, dict[str, Callable[[], float]]]:
    """The settings in words, and the rates of the sampler on `images` images and of the plain loop on `loop` of them."""
    params = yaml.safe_load((ROOT / "params.yaml").read_text(encoding="utf-8"))
    splits = {
        name: ImageSet(*split, digits.CLASSES) for name, split in digits.build({**SPLITS, "train": images}).items()
    }
    data = splits["train"]
    with tempfile.TemporaryDirectory() as scratch:
        # One step of one batch: rates and the like do not matter.
        recipe = PriorRecipe(
            **{
                **{key: value for key, value in params["prior"].items() if key != "images"},
                "steps": 1,
                "checkpoint_every": 1,
            }
        )
        prior, _ = train_prior(splits["public"], recipe, seed=0, scratch=Path(scratch) / "prior")
    settings = Settings(
        **{key: value for key, value in params["variations"].items() if key not in ("enabled", "method")}
    )
    own = yaml.safe_load((ROOT / "params" / "variations.yaml").read_text(encoding="utf-8"))["sdedit"]
    # A copy, as the sampler lays its network out anew; contiguous, as networks are by default.
    theirs = Prior(
        deepcopy(prior.unet).to(device=pick_device(), memory_format=torch.contiguous_format),
        prior.unshuffle,
        prior.max_strength,
    )
    pictures = [Image.fromarray(image) for image in data.gather(np.arange(loop))]
    what = f"{own['scheduler']}, {len(make_scheduler(**own)[1])} passes"
    ours = data.subset(np.arange(images))
    return what, {
        "plain": lambda: loop / timed(lambda: plain(theirs, pictures, settings, own)),
        "ours": lambda: (
            images / timed(lambda: generate(ours, "sdedit", prior, settings, own, seed=0, store=ContentStore(None)))
        ),
    }


def main() -> None:
    given = arguments(__doc__, runs=5)
    what, ways = ways_of(16 if given.quick else SPLITS["train"], 4 if given.quick else LOOP)
    if not given.quick:
        by_turns(ways, 1)  # the first passes of a process are slow
    rows = [row(f"sampler, {what}", by_turns(ways, given.runs), "ours", "plain")]
    report(rows, "sampler.csv", write=not given.quick)


if __name__ == "__main__":
    main()
