"""Generate variations of the suspect training set; images whose variation is in the store are not generated again."""

from __future__ import annotations

import sys
import time
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # where PYTHONSAFEPATH leaves it out

from common import BASE, POISONED, PRIOR, SCRATCH, VARIATIONS, run_stage

import numpy as np

from not_applicable import without_set
from parameters import OFF, PARAMS, Params, checked, load_params, seed_of, with_variations
from train_prior import images_of
from unpoison.compute.distributed import world
from unpoison.compute.engines import engine
from unpoison.core.content_store import ContentStore
from unpoison.core.errors import file_of, keys_of
from unpoison.core.files import sha256_file
from unpoison.core.manifest import check_made_from, write_absent
from unpoison.data import store
from unpoison.data.store import new_base, open_poisoned
from unpoison.variations import prior as prior_
from unpoison.variations.generate import generate
from unpoison.variations.prior import load_prior
from unpoison.variations.sampling import SamplerSettings, executed_steps


def settings(params: Params) -> SamplerSettings:
    sampler = SamplerSettings(**checked(params, "variations", SamplerSettings, without=("enabled",)))
    with file_of(PARAMS), keys_of("variations"):
        executed_steps(sampler)  # refuses a strength that leaves no step to execute
    return sampler


def main() -> list[Path]:
    params = load_params()
    seed, sampler = seed_of(params), settings(params)
    if not with_variations(params):
        write_absent(VARIATIONS, OFF)
        return [VARIATIONS]
    if without_set("generate_variations", VARIATIONS):
        return [VARIATIONS]
    data, source, start = open_poisoned(BASE, POISONED), images_of(params), time.perf_counter()
    trained_on = data.digest if source == POISONED else sha256_file(BASE / store.MANIFEST)
    check_made_from(PRIOR, prior_.DESCRIPTION, **{source.name: trained_on})
    prior = load_prior(PRIOR)
    with file_of(PARAMS), keys_of("variations"):
        entries = generate(data, prior, sampler, seed=seed, store=ContentStore(SCRATCH / "store", engine(SCRATCH)))
    if world().rank:
        return []
    copies = sampler.num_variations
    made_from = {"poisoned": data.digest, "prior": prior.digest}
    about = {
        "name": "variations",
        "sampler": {**sampler.as_json(), "prior": str(source)},
        "seed": seed,
        "made_from": made_from,
    }
    with new_base(VARIATIONS, data.classes, {"train": data.labels.repeat(copies)}, {}, about) as base:
        for samples, images in entries.blocks():
            rows = (samples[:, None] * copies + np.arange(copies)).ravel()
            base.write("train", rows, images.reshape(-1, *images.shape[2:]))
    total = entries.made + entries.reused
    print(
        f"generate_variations: {entries.made} of {total} images generated in {time.perf_counter() - start:.0f} s, "
        f"{entries.reused} ({entries.reused / total:.1%}) from the store",
        flush=True,
    )
    return [VARIATIONS]


if __name__ == "__main__":
    run_stage("generate_variations", main, together=True)
