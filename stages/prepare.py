"""Build the base data set: train, test, a small trusted labelled reserve, and a public unlabelled split."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any

import numpy as np
from annotated_types import Ge

from common import BASE, PARAMS, Params, checked, load_params, run_stage, section
from unpoison.data import digits
from unpoison.data.store import write_base
from unpoison.errors import UserError
from unpoison.hyperparameters import Whole, choose

Size = Annotated[int, Ge(10)]


def digits_sizes(
    *, train: Size = 4800, test: Size = 1200, reserve: Whole = 600, public: Whole = 1200
) -> dict[str, int]:
    return {"train": train, "test": test, "reserve": reserve, "public": public}


SOURCES = {"digits": digits_sizes}


def settings(params: Params) -> dict[str, int]:
    """The splits' sizes."""
    data = section(params, "data")
    for key in data:
        if key != "name" and key not in SOURCES:
            raise UserError(f"{PARAMS}: data.{key}: unknown key, allowed: name, {', '.join(SOURCES)}")
    source = choose(data.get("name"), SOURCES, where=f"{PARAMS}: data.name")
    return source(**checked(params, f"data.{data['name']}", source))


def main() -> list[Path]:
    sizes = settings(load_params())
    splits: dict[str, Any] = digits.build(sizes)
    images, labels = splits["public"]
    splits["public"] = images, np.full_like(labels, -1)
    write_base(BASE, splits, classes=digits.CLASSES, name="digits", source="scikit-learn", licence=digits.LICENCE)
    print(f"prepare: {', '.join(f'{count} {name}' for name, count in sizes.items())} images", flush=True)
    return [BASE]


if __name__ == "__main__":
    run_stage("prepare", main)
