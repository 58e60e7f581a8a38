"""What several test files need: the digits, and the network with a planted backdoor."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from copy import deepcopy
from typing import Any

import pytest

from planted import Planted, load, make_splits
from unpoison.compute.inference import features_of
from unpoison.data.features import Features
from unpoison.data.imageset import ImageSet
from unpoison.detection.detector import Suspect

# The CPU and fp32 everywhere, so that a test means the same on every machine; those that are marked `gpu` ask for theirs.
os.environ.setdefault("UNPOISON_DEVICE", "cpu")
os.environ.setdefault("UNPOISON_PRECISION", "fp32")


def with_value(block: Mapping[str, Any], path: Sequence[str], value: Any) -> dict[str, Any]:
    """A copy of nested blocks with the value at `path` replaced."""
    changed: Any = deepcopy(dict(block))
    *sections, last = path
    inner = changed
    for section in sections:
        inner = inner[section]
    inner[last] = value
    return dict(changed)


LONGEST = (
    "stages",
    "pipeline",
    "robust",
    "purification",
    "hostile_report",
    "engines",
    "detection",
    "suite_runs",
    "visualisation",
    "variations",
    "sizes",
    "models",
    "distributed",
)
"""Files of tests that take the longest, in this order."""
END_TO_END = (
    "stages",
    "pipeline",
    "suite_runs",
    "engines",
    "distributed",
    "flower",
    "sizes",
    "dist",
    "robust",
    "hostile_report",
    "visualisation",
    "variations",
    "variation_methods",
    "scan",
    "audit",
    "conversion",
    "pipelines",
    "process",
    "suites",
)
"""Files whose tests run stages, DVC, several processes or whole trainings: marked `end_to_end`, and not part of `make test`."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest files first: workers that take file after file then end at about the same time."""
    for item in items:
        if item.path.stem.removeprefix("test_") in END_TO_END:
            item.add_marker("end_to_end")
    place = {f"test_{name}.py": number for number, name in enumerate(LONGEST)}
    items.sort(key=lambda item: place.get(item.path.name, len(place)))


@pytest.fixture(autouse=True)
def _working_directory() -> Iterator[None]:
    """Code under test that goes into a folder leaves the tests behind it where they were."""
    before = os.getcwd()
    yield
    os.chdir(before)


@pytest.fixture(scope="session")
def splits() -> dict[str, ImageSet]:
    return make_splits()


@pytest.fixture(scope="session")
def planted(splits: dict[str, ImageSet]) -> Planted:
    return load(splits)


@pytest.fixture(scope="session")
def features(planted: Planted) -> Features:
    """Logits and penultimate features of the whole poisoned training set."""
    return features_of(planted.model, planted.data)


@pytest.fixture(scope="session")
def suspect(planted: Planted, features: Features) -> Suspect:
    """What a detector is handed of the planted backdoor."""
    return Suspect(
        model=planted.model,
        data=planted.data,
        features=features,
        reserve=planted.reserve,
        reserve_features=features_of(planted.model, planted.reserve),
    )
