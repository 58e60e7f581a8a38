"""Generate variations of the suspect training set; images whose variation is in the store are not generated again."""

from __future__ import annotations

import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent))  # where PYTHONSAFEPATH leaves it out

from common import BASE, POISONED, PRIOR, SCRATCH, VARIATIONS, check_code, run_stage

import numpy as np

from not_applicable import without_set
from parameters import (
    FAMILIES,
    OFF,
    PARAMS,
    Params,
    checked,
    load_params,
    own_parameters,
    section,
    seed_of,
    with_variations,
)
from train_prior import images_of
from unpoison.compute.distributed import world
from unpoison.compute.engines import engine
from unpoison.core.content_store import ContentStore
from unpoison.core.errors import file_of, keys_of
from unpoison.core.files import sha256_file
from unpoison.core.hyperparameters import one_of
from unpoison.core.manifest import check_made_from, write_absent
from unpoison.data import store
from unpoison.data.imageset import ImageSet
from unpoison.data.store import new_base, open_poisoned
from unpoison.variations import VARIATIONS as METHODS
from unpoison.variations import prior as prior_
from unpoison.variations.generate import generate
from unpoison.variations.pipelines import Pipeline, find_model, open_pipeline
from unpoison.variations.prior import Prior, load_prior
from unpoison.variations.sampling import Settings, check_strength
from unpoison.variations.variation import Variation


@dataclass(frozen=True)
class Chosen:
    """The section `variations` and the parameters of its method.

    Attributes:
        name: the method's.
        settings: what all methods have.
        own: the method's own parameters.
    """

    name: str
    settings: Settings
    own: dict[str, Any]

    @property
    def method(self) -> Variation:
        return METHODS[self.name]

    def check(self, max_strength: float) -> None:
        """Raises UserError for what would stop the stage: parameters that fit no sampler, noise beyond the prior, no model."""
        with file_of(FAMILIES["variations"]), keys_of(self.name):
            self.method.evaluations(**self.own)
            if self.method.pipeline is None:
                check_strength(max_strength, self.own)
            else:
                find_model(self.own["model"], self.own["revision"])

    def pipeline(self) -> Pipeline | None:
        """The pipeline of the method, not loaded yet; None for a method that works with the prior."""
        if self.method.pipeline is None:
            return None
        with file_of(FAMILIES["variations"]), keys_of(self.name):
            return open_pipeline(self.method.pipeline, **{key: self.own[key] for key in ("model", "revision", "half")})


def chosen_of(params: Params) -> Chosen:
    name = section(params, "variations").get("method")
    with file_of(PARAMS):
        one_of(name, METHODS, key="variations.method")
    settings = Settings(**checked(params, "variations", Settings, without=("enabled", "method")))
    method = METHODS[str(name)]
    return Chosen(str(name), settings, method.whole(own_parameters(params, "variations", str(name), method.parameters)))


def main() -> list[Path]:
    params = load_params()
    seed, chosen = seed_of(params), chosen_of(params)
    check_code(f"generate_variations@{chosen.name}")
    if not with_variations(params):
        write_absent(VARIATIONS, OFF)
        return [VARIATIONS]
    if without_set("generate_variations", VARIATIONS):
        return [VARIATIONS]
    data, start = open_poisoned(BASE, POISONED), time.perf_counter()
    made_from, sampler = {"poisoned": data.digest}, {"method": chosen.name, **chosen.settings.as_json(), **chosen.own}
    model: Prior | Pipeline | None = chosen.pipeline()
    if model is None:
        source = images_of(params)
        model, sampler["prior"] = _prior(data, source), str(source)
        made_from["prior"] = model.digest
    else:
        sampler["weights"] = model.digest
    kept = ContentStore(SCRATCH / "store", engine(SCRATCH))
    with file_of(FAMILIES["variations"]), keys_of(chosen.name):
        entries = generate(data, chosen.name, model, chosen.settings, chosen.own, seed=seed, store=kept)
    if world().rank:
        return []
    copies = chosen.settings.num_variations
    about = {"name": "variations", "sampler": sampler, "seed": seed, "made_from": made_from}
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


def _prior(data: ImageSet, images: Path) -> Prior:
    """The prior that was trained on the present images."""
    trained_on = data.digest if images == POISONED else sha256_file(BASE / store.MANIFEST)
    check_made_from(PRIOR, prior_.DESCRIPTION, **{images.name: trained_on})
    return load_prior(PRIOR)


if __name__ == "__main__":
    run_stage("generate_variations", main, together=True)
