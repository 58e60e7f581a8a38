"""Train the diffusion prior on the public split. A killed run goes on from its last checkpoint."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import pandas as pd

from common import BASE, PRIOR, SCRATCH, TRAINING, Params, checked, load_params, run_stage, seed_of
from unpoison.core.files import new_file, sha256_json
from unpoison.data.store import open_split
from unpoison.variations.prior import PriorRecipe, save_prior, train_prior


def settings(params: Params) -> PriorRecipe:
    return PriorRecipe(**checked(params, "prior", PriorRecipe))


def main() -> list[Path]:
    params = load_params()
    seed, recipe = seed_of(params), settings(params)
    public = open_split(BASE, "public")
    key = sha256_json([public.digest, seed, asdict(recipe)])[:16]
    prior, rows = train_prior(public, recipe, seed=seed, scratch=SCRATCH / "prior" / key)
    save_prior(prior, PRIOR, made_by={"stage": "train_prior", "seed": seed, "steps": recipe.steps})
    with new_file(TRAINING / "prior.csv") as staging:
        pd.DataFrame(rows, columns=["step", "loss"]).to_csv(staging, index=False)
    print(f"train_prior: {recipe.steps} steps, prediction error {rows[-1]['loss']:.4f}", flush=True)
    return [PRIOR, TRAINING / "prior.csv"]


if __name__ == "__main__":
    run_stage("train_prior", main)
