"""Look for problems of the data that are no backdoor: copies across classes and splits, labels that do not fit, empty images."""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # where PYTHONSAFEPATH leaves it out

from common import BASE, FEATURES, POISONED, run_stage, say

import numpy as np

from unpoison.core.manifest import check_made_from, made_from_of
from unpoison.data import features as features_
from unpoison.data.features import read_features
from unpoison.data.imageset import ImageSet
from unpoison.data.problems import save_problems
from unpoison.data.store import open_poisoned, open_split, read_about
from unpoison.examination.examine import examine

PROBLEMS = Path("data/problems")


def other_splits() -> dict[str, ImageSet]:
    """The splits beside the training set, by name."""
    # A reserve that was drawn from the training set is a copy of it on purpose.
    twice = read_about(BASE).get("reserve_from") == "train"
    return {name: open_split(BASE, name) for name in ("test", "reserve", "public") if not (twice and name == "reserve")}


def main() -> list[Path]:
    data, others, folder = open_poisoned(BASE, POISONED), other_splits(), FEATURES / "training"
    check_made_from(folder, features_.DESCRIPTION, poisoned=data.digest)
    found = examine(data, [*others.values()], read_features(folder).logits[np.arange(len(data))])
    made_from = made_from_of(folder, features_.DESCRIPTION)
    splits = {"train": len(data), **{name: len(images) for name, images in others.items()}}
    save_problems(found, PROBLEMS, splits=splits, classes=len(data.classes), made_from=made_from)
    say(
        f"examine: {len(found.pairs)} copies and near copies across classes and splits, {len(found.constant)} images of one "
        f"colour, {int((found.contradicted >= 0).sum())} labels that the model contradicts"
    )
    return [PROBLEMS]


if __name__ == "__main__":
    run_stage("examine", main)
