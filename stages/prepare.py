"""Build the base data set: train, test, a small trusted labelled reserve, and a public unlabelled split."""

from __future__ import annotations

import os
import sys
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, NamedTuple

sys.path.insert(0, str(Path(__file__).parent))  # where PYTHONSAFEPATH leaves it out

from common import BASE, CHECKED, SCRATCH, run_stage

import numpy as np
from annotated_types import Ge, Le

from parameters import PARAMS, Params, checked, load_params
from unpoison.core.errors import ParameterError, file_of, keys_of
from unpoison.core.files import read_json, sha256_file
from unpoison.core.hyperparameters import check, one_of
from unpoison.data.store import read_about, write_base
from unpoison.sources import digits, multi_mnist, single_digits
from unpoison.sources.attributes import Table, classes_with, read_table
from unpoison.sources.build import BuildSettings, build_base
from unpoison.sources.folder import Layout, open_folder
from unpoison.sources.published import PUBLISHED, open_published
from unpoison.sources.reserve import open_reserve
from unpoison.sources.source import Source
from unpoison.sources.splits import MOST, SplitSettings, reserve_count, size_said
from unpoison.sources.texts import TextSettings, check_words, open_texts


class Made(NamedTuple):
    """A set that is made of single digits: its classes, and the side and channels of its images."""

    classes: tuple[str, ...]
    side: int
    channels: int


MOST_DIGITS = 100_000
"""More digits than these take gigabytes to make, and the scans behind them are fewer than two thousand."""
Size = Annotated[int, Ge(10), Le(MOST_DIGITS)]
MADE = {
    "digits": Made(digits.CLASSES, digits.SIDE, 3),
    "multi_mnist": Made(multi_mnist.CLASSES, single_digits.SIDE, 1),
}
"""The sets that are made here, of as many images as are asked for."""
SOURCES = ("digits", "folder", *PUBLISHED, "multi_mnist", "text")
NOTED = CHECKED / "attributes.json"
"""The digest of the table of attributes, which may lie anywhere."""


@dataclass(frozen=True, kw_only=True)
class Settings(SplitSettings, BuildSettings):
    """The section `data`.

    Attributes:
        name: one of `SOURCES`.
        path: the folder or archive of `folder`; the CSV file of `text`; the folder where the files of a published set are, or
            are put; of `multi_mnist` that of MNIST's, or a table of digits.
        layout: of `folder`: whether its top folders are `parts` (train, test, …) or `classes`; `auto` goes by their names.
        digits: of sets in `MADE`: how many images are made for `train` and `test`; `reserve` and `public` are those of
            every source.
        text: of `text`: length and vocabulary (`TextSettings`).
        reserve_path: the folder or archive that the reserve is taken from, with `reserve_from: other`.
        attributes: table of attributes of the samples of `folder`, a file; None: there are none.
        classes_of: attribute whose values are classes as well: the head has a place for each.

    `reserve` and `public` that are null are numbers here already (600 and 1,200), but for `folder`, whose share of the data
    is not known before they are read, and for a reserve from another source. Of `text` the reserve is a share as well, and
    `public`, which only the prior of images needs, is 0.
    """

    name: str = "digits"
    path: str = "data/source"
    layout: Layout = "auto"
    digits: dict[str, Any] = field(default_factory=dict)
    text: dict[str, Any] = field(default_factory=dict)
    reserve_path: str = "data/reserve_source"
    attributes: str | None = None
    classes_of: str | None = None

    @property
    def train_size(self) -> int | None:
        """Images in the source's training part; None for a folder, where only its files say it."""
        if self.name in MADE:
            return DigitsSizes(**self.digits).train
        return PUBLISHED[self.name].train if self.name in PUBLISHED else None

    @property
    def reserve_size(self) -> int | None:
        """The number of images in the reserve; None where it is null, or a share of a folder."""
        if isinstance(self.reserve, float) and self.train_size is None:
            return None
        return reserve_count(self.reserve, self.train_size or 0)

    @property
    def digits_sizes(self) -> dict[str, int]:
        # Whatever the origin of the reserve, scans are shared out as for one that is set apart: the other splits are the same.
        reserve = MOST["reserve"] if self.reserve_size is None else self.reserve_size
        sizes = {**asdict(DigitsSizes(**self.digits)), "reserve": reserve, "public": self.public or 0}
        return {**sizes, "train": min(self.train_limit or sizes["train"], sizes["train"])}

    def most(self, split: str) -> int:
        """The most images that `reserve` or `public` can come to."""
        given = self.reserve_size if split == "reserve" else self.public
        if given is None and split == "reserve" and self.reserve is None and self.reserve_from == "other":
            return MOST[split]
        # A folder may have a part of its own for it, which is taken as a whole.
        return sys.maxsize if given is None else given

    def said(self, split: str) -> str:
        """What was given for `reserve` or `public`, in words."""
        return size_said(getattr(self, split), self.most(split))

    def check_sizes(self) -> None:
        """Raises ParameterError for numbers that cannot be met, where the size of the source is known before it is read."""
        if self.name in MADE:
            classes, sizes = len(MADE[self.name].classes), {"train": sys.maxsize, "test": sys.maxsize}
            for split, size in asdict(DigitsSizes(**self.digits)).items():
                if size < classes:
                    raise ParameterError(f"digits.{split}: {size} given, allowed: at least {classes}, one per class")
            for split in ("reserve", "public"):
                size = self.digits_sizes[split]
                if 0 < size < classes or size > MOST_DIGITS:
                    raise ParameterError(
                        f"{split}: {self.said(split)}, allowed: 0 or at least {classes}, one per class, and up to {MOST_DIGITS}"
                    )
        elif self.name in PUBLISHED:
            known = PUBLISHED[self.name]
            classes, sizes = known.classes, {"train": known.train, "test": known.test}
        else:
            return
        if self.train_limit is not None and self.train_limit < classes:
            raise ParameterError(
                f"train_limit: {self.train_limit} given, allowed: at least {classes}, one training sample for each class"
            )
        spare = sizes[self.trusted] - classes
        for split in ("reserve", "public") if self.reserve_from == "held_out" else ("public",):
            if (size := self.most(split)) > spare:
                raise ParameterError(
                    f"{split}: {self.said(split)}, allowed: at most {spare} of what is left of the {self.trusted} part of "
                    f"{self.name}, as one sample stays in each of {classes} classes"
                )
            spare -= size
        if self.reserve_from == "train":
            # Of sets that are made, each split is made for itself.
            taken = self.most("public") if self.trusted == "train" and self.name not in MADE else 0
            most = min((self.train_size or 0) - taken, self.train_limit or sys.maxsize)
            if self.most("reserve") > most:
                raise ParameterError(
                    f"reserve: {self.said('reserve')}, allowed: at most {most}, the training images that it is drawn from"
                )


@dataclass(frozen=True, kw_only=True)
class DigitsSizes:
    """How many digits are made for each of the two splits that other sources bring."""

    train: Size = 4800
    test: Size = 1200


def settings(params: Params) -> Settings:
    values = checked(params, "data", Settings)
    with file_of(PARAMS), keys_of("data"):
        one_of(values.get("name"), dict.fromkeys(SOURCES), key="name")
        with keys_of("digits"):
            check(values.get("digits", {}), DigitsSizes)
        with keys_of("text"):
            check_words(TextSettings(**check(values.get("text", {}), TextSettings)))
        other = values.get("reserve_from") == "other"
        path = values.get("reserve_path", Settings.reserve_path)
        if path != Settings.reserve_path and not other:
            raise ParameterError(
                f"reserve_path: {path!r} given, allowed with reserve_from: other; without it {Settings.reserve_path}"
            )
        _check_attributes(values)
    if values["name"] == "text":
        values["public"] = values.get("public") or 0
    elif values["name"] != "folder":
        fixed = ("public",) if other else ("reserve", "public")
        values |= {split: MOST[split] for split in fixed if values.get(split) is None}
    return Settings(**values)


def _check_attributes(values: Params) -> None:
    """Raises ParameterError for attributes of data that have none, and for classes of attributes that are not there."""
    for key, wanted, allowed in (
        ("attributes", values.get("name") == "folder", "name: folder"),
        ("classes_of", values.get("attributes") is not None, "attributes: a file"),
    ):
        if values.get(key) is not None and not wanted:
            raise ParameterError(f"{key}: {values[key]!r} given, allowed with {allowed}; otherwise null")


def attributes_of(given: Settings) -> Table | None:
    """The table of attributes; None where there is none. Raises UserError for what is wrong with it."""
    if given.attributes is None:
        return None
    if not Path(given.attributes).exists():
        raise ParameterError(
            f"attributes: {given.attributes!r} given, which does not exist; allowed: a table of attributes"
        )
    return read_table(Path(given.attributes))


def main() -> list[Path]:
    given = settings(load_params())
    with file_of(PARAMS), keys_of("data"):
        given.check_sizes()
        _check_unchanged(given)
        if given.name == "digits":
            _digits(given)
        else:
            # Of a set that is made the number of trusted images was known before; a share is one of what is asked for.
            _build(open_source(given), replace(given, reserve=given.reserve_size) if given.name in MADE else given)
    return [BASE]


def _check_unchanged(given: Settings) -> None:
    """Raises ParameterError where the attributes are not those that `check_params` saw, whose digest DVC goes by."""
    # Run by hand, the table is whatever lies there.
    if given.attributes is None or "DVC_STAGE" not in os.environ or not NOTED.exists():
        return
    if read_json(NOTED).get("attributes") != sha256_file(Path(given.attributes)):
        raise ParameterError(
            f"attributes: {given.attributes!r} given, changed since `check_params` ran; allowed: what that saw, "
            "`dvc repro -f check_params` looks again"
        )


def _digits(given: Settings) -> None:
    splits = digits.build(given.digits_sizes)
    images, labels = splits["public"]
    splits["public"] = images, np.full_like(labels, -1)
    if given.reserve_from != "held_out":
        about = {"name": "digits", "source": "scikit-learn", "licence": digits.LICENCE}
        _build(digits.as_source(splits, about), replace(given, reserve=given.reserve_size, image_size=None))
        return
    write_base(BASE, splits, classes=digits.CLASSES, name="digits", source="scikit-learn", licence=digits.LICENCE)
    print(f"prepare: {_counted({name: len(each) for name, (_, each) in splits.items()})} images", flush=True)


def _build(source: Source, given: Settings) -> None:
    other = open_reserve(Path(given.reserve_path), source.classes) if given.reserve_from == "other" else None
    table = attributes_of(given)
    if table is not None and given.classes_of is not None:
        # After the reserve, which is asked for images of the classes that have some.
        source = replace(source, classes=classes_with(table, given.classes_of, source.classes))
    for each in (source, other) if other else (source,):
        for name in each.ignored[:3]:
            print(f"prepare: {name} is no sample, ignored ({len(each.ignored)} such files)", flush=True)
        for note in each.notes:
            print(f"prepare: {note}", flush=True)
    counts = build_base(source, BASE, given, given, defects=SCRATCH / "defects.txt", other=other, attributes=table)
    left_out = counts.pop("defects")
    if unused := counts.pop("rows", 0):
        print(f"prepare: {unused} rows of {given.attributes} stand for no sample", flush=True)
    kind = "texts" if given.name == "text" else "images"
    print(f"prepare: {_counted(counts)} {kind} of {len(source.classes)} classes", flush=True)
    if left_out:
        print(f"prepare: {left_out} files left out, listed in {BASE / 'defects.txt'}", flush=True)
    if dim := read_about(BASE).get("dim"):
        print(
            f"prepare: {dim['count']} files of 16 bits have no value past 4095 of 65535 (the first: {dim['first']}): 12 bits "
            "in 16? Of 16 bits the high byte is taken, so they are almost black; scale them before",
            flush=True,
        )


def open_source(given: Settings) -> Source:
    path = Path(given.path)
    if given.name == "multi_mnist":
        own = Path(Settings.path)
        return multi_mnist.open_multi_mnist(path, given.digits_sizes, seed=given.split_seed, own=own)
    if given.name == "text":
        return open_texts(path, TextSettings(**given.text), given, skip=given.on_error == "skip")
    return open_folder(path, given.layout) if given.name == "folder" else open_published(given.name, path)


def _counted(counts: dict[str, int]) -> str:
    return ", ".join(f"{counts[name]} {name}" for name in ("train", "test", "reserve", "public"))


if __name__ == "__main__":
    run_stage("prepare", main)
