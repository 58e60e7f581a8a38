"""Train the diffusion prior, on trusted images or on the suspect set. A killed run goes on from its last checkpoint."""

from __future__ import annotations

import sys
from dataclasses import asdict
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # where PYTHONSAFEPATH leaves it out

from common import BASE, POISONED, PRIOR, SCRATCH, TRAINING, run_stage

import pandas as pd

from not_applicable import without_set
from parameters import PARAMS, Params, checked, load_params, section, seed_of
from unpoison.core.errors import UserError, file_of, keys_of
from unpoison.core.files import new_file, sha256_json
from unpoison.core.manifest import write_absent
from unpoison.data.store import open_poisoned, open_split
from unpoison.variations.prior import save_prior
from unpoison.variations.prior_training import PriorRecipe, check_recipe, train_prior
from without import why_without

CURVE = TRAINING / "prior.csv"
IMAGES = (BASE / "public", BASE / "reserve", POISONED)


def settings(params: Params) -> PriorRecipe:
    recipe = PriorRecipe(**checked(params, "prior", PriorRecipe, without=("images",)))
    with file_of(PARAMS), keys_of("prior"):
        check_recipe(recipe)
    return recipe


def images_of(params: Params) -> Path:
    """Where the images lie that the prior is trained on: DVC's dependency, so that it is written in one way."""
    given = section(params, "prior").get("images")
    if not isinstance(given, str) or given not in map(str, IMAGES):
        raise UserError(f"{PARAMS}: prior.images: {given!r} given, allowed: {', '.join(map(str, IMAGES))}")
    return Path(given)


def main() -> list[Path]:
    params = load_params()
    seed, recipe = seed_of(params), settings(params)
    rows: list[dict[str, float]] = []
    folder = images_of(params)
    if (why := why_without("prior")) is not None:
        write_absent(PRIOR, why)
    elif folder != POISONED or not without_set("train_prior", PRIOR):
        images = open_poisoned(BASE, POISONED) if folder == POISONED else open_split(BASE, folder.name)
        key = sha256_json([images.digest, str(folder), seed, asdict(recipe)])[:16]
        with file_of(PARAMS), keys_of("prior"):
            prior, rows = train_prior(images, recipe, seed=seed, scratch=SCRATCH / "prior" / key)
        made_by = {"stage": "train_prior", "images": str(folder), "recipe": asdict(recipe), "seed": seed}
        save_prior(prior, PRIOR, made_by=made_by, made_from={folder.name: images.digest})
        print(f"train_prior: {recipe.steps} steps, prediction error {rows[-1]['loss']:.4f}", flush=True)
    with new_file(CURVE) as staging:
        pd.DataFrame(rows, columns=["step", "loss"]).to_csv(staging, index=False)
    return [PRIOR, CURVE]


if __name__ == "__main__":
    run_stage("train_prior", main)
