"""Train the diffusion prior on the public split. A killed run goes on from its last checkpoint."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # where PYTHONSAFEPATH leaves it out

from common import BASE, PRIOR, SCRATCH, TRAINING, run_stage

import pandas as pd

from parameters import OFF, PARAMS, Params, checked, load_params, seed_of, with_variations
from unpoison.core.errors import file_of, keys_of
from unpoison.core.files import new_file, sha256_json
from unpoison.core.manifest import write_absent
from unpoison.data.store import open_split
from unpoison.variations.prior import save_prior
from unpoison.variations.prior_training import PriorRecipe, check_recipe, train_prior

CURVE = TRAINING / "prior.csv"


def settings(params: Params) -> PriorRecipe:
    recipe = PriorRecipe(**checked(params, "prior", PriorRecipe))
    with file_of(PARAMS), keys_of("prior"):
        check_recipe(recipe)
    return recipe


def main() -> list[Path]:
    params = load_params()
    seed, recipe = seed_of(params), settings(params)
    rows: list[dict[str, float]] = []
    if with_variations(params):
        public = open_split(BASE, "public")
        key = sha256_json([public.digest, seed, asdict(recipe)])[:16]
        with file_of(PARAMS), keys_of("prior"):
            prior, rows = train_prior(public, recipe, seed=seed, scratch=SCRATCH / "prior" / key)
        made_by = {"stage": "train_prior", "recipe": asdict(recipe), "seed": seed}
        save_prior(prior, PRIOR, made_by=made_by, made_from={"base": public.digest})
        print(f"train_prior: {recipe.steps} steps, prediction error {rows[-1]['loss']:.4f}", flush=True)
    else:
        write_absent(PRIOR, OFF)
    with new_file(CURVE) as staging:
        pd.DataFrame(rows, columns=["step", "loss"]).to_csv(staging, index=False)
    return [PRIOR, CURVE]


if __name__ == "__main__":
    run_stage("train_prior", main)
