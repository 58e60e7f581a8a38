"""Generate variations of the suspect training set; images whose variation is in the store are not generated again."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from common import BASE, POISONED, PRIOR, SCRATCH, VARIATIONS, Params, checked, load_params, run_stage, seed_of
from unpoison.compute.device import pick_device
from unpoison.data.store import new_base, open_poisoned
from unpoison.variations.prior import load_prior
from unpoison.variations.sampling import BATCH, SamplerSettings, executed_steps, vary
from unpoison.variations.store import generate_all


def settings(params: Params) -> SamplerSettings:
    sampler = SamplerSettings(**checked(params, "variations", SamplerSettings))
    executed_steps(sampler)  # refuses a strength that leaves no step to execute
    return sampler


def main() -> list[Path]:
    params = load_params()
    seed, sampler = seed_of(params), settings(params)
    data, prior, device = open_poisoned(BASE, POISONED), load_prior(PRIOR), pick_device()
    prior.unet.to(device=device, memory_format=torch.channels_last)

    def generate(images: NDArray[np.uint8], keys: NDArray[np.int64]) -> NDArray[np.uint8]:
        batch = torch.from_numpy(images).permute(0, 3, 1, 2)
        return vary(prior, batch, keys.tolist(), sampler, seed=seed, device=device).permute(0, 1, 3, 4, 2).numpy()

    start = time.perf_counter()
    determined_by = {"prior": prior.digest, "sampler": sampler.as_json(), "seed": seed}
    outcome = generate_all(data, determined_by, generate, store=SCRATCH / "variations", batch=BATCH)
    each = sampler.num_variations
    about = {"name": "variations", "base": data.digest, "num_variations": each}
    with new_base(VARIATIONS, data.classes, {"train": data.labels.repeat(each)}, {}, about) as base:
        for samples, images in outcome.blocks():
            rows = (samples[:, None] * each + np.arange(each)).ravel()
            base.write("train", rows, images.reshape(-1, *images.shape[2:]))
    total = outcome.generated + outcome.reused
    print(
        f"generate_variations: {outcome.generated} of {total} images generated in {time.perf_counter() - start:.0f} s, "
        f"{outcome.reused} ({outcome.reused / total:.1%}) from the store",
        flush=True,
    )
    return [VARIATIONS]


if __name__ == "__main__":
    run_stage("generate_variations", main)
