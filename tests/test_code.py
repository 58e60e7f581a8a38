"""Digests of code: what changes one, how far they reach, and that those of the store reach all that is run."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np
import pytest

from unpoison.attacks import SINGLE
from unpoison.core import code
from unpoison.core.code import ROOT, code_of, digest_of, imports_of
from unpoison.core.content_store import ContentStore
from unpoison.crafting import surrogate
from unpoison.crafting.context import Context
from unpoison.data.imageset import ImageSet
from unpoison.training.recipe import Recipe

SOURCE = '''
"""A module."""

import os


class Thing:
    """A class."""

    size: int = 3
    """An attribute."""

    def area(self, factor=1):
        """A method."""
        # the side, squared
        text = "not a docstring"
        return self.size**2 * factor


async def wait():
    """A coroutine."""
    return await later()
'''


def digest(folder: Path, source: str) -> str:
    """The digest of a source, in a file of its own: digests are remembered for a process."""
    path = folder / f"module{len(list(folder.iterdir()))}.py"
    path.write_text(source, encoding="utf-8")
    return digest_of(path)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("# the side, squared", "# its side in pixels, squared"),
        ("        # the side, squared\n", ""),
        ('"""A module."""', '"""Another description,\n\nof more lines."""'),
        ('"""A class."""', '"""Some class."""'),
        ('        """A method."""\n', ""),
        ('"""A coroutine."""', '"""Wait."""'),
        ('    """An attribute."""\n', ""),
        ("self.size**2 * factor", "((self.size ** 2)\n            * factor)"),
        ("\n\nclass Thing", "\n\n\n\nclass Thing"),
        ('"not a docstring"', "'not a docstring'"),
    ],
)
def test_comments_docstrings_and_layout_change_no_digest(tmp_path: Path, old: str, new: str) -> None:
    assert SOURCE.count(old) == 1
    assert digest(tmp_path, SOURCE.replace(old, new)) == digest(tmp_path, SOURCE)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("size: int = 3", "size: int = 4"),
        ("factor=1", "factor=2"),
        ("self.size**2 * factor", "self.size * 2 * factor"),
        ("self.size**2 * factor", "factor * self.size**2"),
        ('"not a docstring"', '"another text"'),
        ("import os", "import re"),
        ("def area", "def surface"),
        ("async def", "def"),
        ("        return self.size**2 * factor", "        self.size**2 * factor"),
    ],
)
def test_code_changes_the_digest(tmp_path: Path, old: str, new: str) -> None:
    assert SOURCE.count(old) == 1
    changed = SOURCE.replace(old, new).replace("await later()", "later()" if "async" in old else "await later()")
    assert digest(tmp_path, changed) != digest(tmp_path, SOURCE)


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A package in the place of this one."""
    files = {
        "__init__.py": "from . import core",
        "core/__init__.py": "TABLE = 1",
        "core/files.py": "import json",
        "core/errors.py": "",
        "data/__init__.py": "",
        "data/store.py": "from ..core.files import read\nfrom ..core import errors, TABLE\nfrom .sets import Set",
        "data/sets.py": "def f():\n    from fake.core import errors\n    import fake.data.lazy",
        "data/lazy.py": "import numpy\nfrom .. import data\nfrom fake.nothing import x",
    }
    for name, text in files.items():
        (tmp_path / "fake" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "fake" / name).write_text(text)
    monkeypatch.setattr(code, "PACKAGE", "fake")
    monkeypatch.setattr(code, "ROOT", tmp_path / "fake")
    return tmp_path / "fake"


@pytest.mark.parametrize(
    ("file", "package", "expected"),
    [
        # A name of the package's `__init__` is what makes it count; a module below it does not.
        ("data/store.py", "fake.data", {"fake.core.files", "fake.core.errors", "fake.core", "fake.data.sets"}),
        ("data/sets.py", "fake.data", {"fake.core.errors", "fake.data.lazy"}),
        ("data/lazy.py", "fake.data", {"fake.data"}),
        ("__init__.py", "fake", {"fake.core"}),
        ("core/files.py", "fake.core", set()),
    ],
)
def test_imports_are_those_of_the_project(project: Path, file: str, package: str, expected: set[str]) -> None:
    imported = imports_of(project / file, package)
    assert set(imported) == expected
    assert all(path.is_file() and path.is_relative_to(project) for path in imported.values())


def test_imports_of_a_script(project: Path, tmp_path: Path) -> None:
    script = tmp_path / "stage.py"
    script.write_text("import common\nfrom fake.data.store import open_split\nfrom fake import data, nothing")
    assert set(imports_of(script, "")) == {"fake.data.store", "fake.data", "fake"}


def test_a_circle_is_walked_once(project: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (project / "a.py").write_text("from . import b")
    (project / "b.py").write_text("from . import a")
    monkeypatch.setitem(sys.modules, "fake.a", type(sys)("fake.a"))
    sys.modules["fake.a"].__file__ = str(project / "a.py")
    assert set(code_of("fake.a")) == {"fake.a", "fake.b"}


def test_key_of_a_surrogate_covers_all_code_that_it_runs() -> None:
    covered = code_of("unpoison.crafting.surrogate")
    modules = ["training.loop", "training.optimizer", "training.augment", "models.resnet"]
    modules += [
        "compute.distributed",
        "compute.inference",
        "compute.device",
        "core.seeding",
        "data.imageset",
        "crafting.surrogate",
    ]
    assert {f"unpoison.{name}" for name in modules} <= set(covered)
    # What another method does is none of its business: an edit there would train every network again.
    families = ("attacks", "detection", "inspection", "purification", "robust", "evaluation", "reporting")
    assert not [name for name in covered if name.split(".")[1] in families]


def test_key_of_an_attack_is_that_of_no_other() -> None:
    attacks = {name for name in code_of("unpoison.attacks.lc") if ".attacks" in name}
    assert attacks == {"unpoison.attacks.lc"}


def ran_in(work: Callable[[], Any]) -> set[Path]:
    """The project's files of which some function ran."""
    files: set[str] = set()

    def note(frame: FrameType, event: str, _: Any) -> None:
        if event == "call":
            files.add(frame.f_code.co_filename)

    before = sys.getprofile()
    sys.setprofile(note)
    try:
        work()
    finally:
        sys.setprofile(before)
    return {Path(file) for file in files if Path(file).is_relative_to(ROOT)}


RECIPE = Recipe(epochs=1, batch_size=8, lr=0.01, augment=("crop", "flip"))
NETWORK = {"name": "resnet18", "width": 8, "stem": "conv3_pool"}
SMALL: dict[str, dict[str, Any]] = {
    "trojan": {"form": "optimised", "size": 3, "iterations": 1},
    "lc": {"steps": 1, "adversarial_steps": 1, "random_start": True},
    "lf": {"images": 2, "passes": 1},
    "ssba": {"bits": 8, "steps": 2, "batch_size": 4, "width": 4, "l2_wait": 0, "l2_ramp": 1},
    "dfst": {"steps": 1, "batch_size": 4, "width": 4},
    "feature_collision": {"steps": 1, "size": 3},
    "flip": {"passes": 1, "points": 1, "batch_size": 4},
    "narcissus": {"rounds": 1, "warm_up": 1, "lr": 1e6},
    "input_aware": {"jointly": False, "width": 4, "levels": 1, "mask_epochs": 1, "batch_size": 4},
}


@pytest.fixture
def context(tmp_path: Path) -> Context:
    rng = np.random.default_rng(0)
    images = rng.integers(0, 256, (24, 16, 16, 3), dtype=np.uint8)
    train = ImageSet(images, np.arange(24) % 3, ("a", "b", "c"), "digest")
    # The network, which learns nothing, takes all for class 0: `lf` needs a way to go.
    return Context(train=train, seed=0, target=1, network=NETWORK, recipe=RECIPE, store=ContentStore(tmp_path))


def left_out(ran: set[Path], module: str) -> list[Path]:
    """Those of the files that the key of `module` does not hold."""
    covered = {ROOT.parent / Path(*name.split(".")) for name in code_of(module)}
    return sorted(file for file in ran if not {file.with_suffix(""), file.parent} & covered)


def test_surrogate_runs_nothing_that_its_key_leaves_out(context: Context) -> None:
    ran = ran_in(lambda: surrogate.adversarial_network(context, 8 / 255, 2 / 255, 1))
    assert {ROOT / "training" / "loop.py", ROOT / "models" / "resnet.py", ROOT / "training" / "augment.py"} <= ran
    assert left_out(ran, "unpoison.crafting.surrogate") == []


def test_every_attack_with_assets_is_tried() -> None:
    assert set(SMALL) == {name for name, attack in SINGLE.items() if attack.assets}


@pytest.mark.parametrize("name", SMALL)
def test_attack_runs_nothing_that_its_key_leaves_out(context: Context, name: str) -> None:
    attack = SINGLE[name]

    def work() -> None:
        trigger = attack.make(context, **SMALL[name])
        if attack.optimise is not None:
            attack.optimise(trigger, context, np.array([0, 3]))

    ran = ran_in(work)
    assert context.store.folder is not None
    assert list(context.store.folder.rglob("*.npz")), "an asset was made"
    assert ROOT / "attacks" / f"{name}.py" in ran
    assert left_out(ran, attack.make.__module__) == []
