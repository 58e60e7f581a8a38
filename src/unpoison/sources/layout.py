"""Which folders of a source are parts (`train`, `test`, …) and which are classes, by all of them together."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

from ..core.errors import ParameterError
from .names import listed, short, shown

Layout = Literal["auto", "parts", "classes"]
PARTS = {
    "train": ("train", "training"),
    "test": ("test", "testing", "val", "valid", "validation", "dev", "eval", "evaluation", "pred"),
    "reserve": ("reserve", "trusted"),
    "public": ("public", "unlabelled", "unlabeled"),
}
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+")
_GLUED = re.compile(r"(?:set|data|images|image|imgs|img)$")

Tops = dict[str, set[str]]
"""The folders of each top folder that hold images, however deep; "" among them where images lie in the top folder itself."""


@dataclass
class Arrangement:
    """How a source is laid out.

    Attributes:
        depth: number of folders around everything.
        parts: part by top folder; empty where the top folders are classes.
        doubled: top folders with nothing but a folder of the same name in them, which is passed over.
        notes: lines on top folders that are left out.
    """

    depth: int
    parts: dict[str, str] = field(default_factory=dict)
    doubled: set[str] = field(default_factory=set)
    notes: list[str] = field(default_factory=list)

    def place(self, name: str) -> tuple[str, list[str]]:
        """Part of an image, "" where its folder is left out, and the parts of its name from the class on."""
        levels = name.split("/")[self.depth :]
        if not self.parts:
            return "train", levels
        return self.parts.get(levels[0], ""), levels[2 if levels[0] in self.doubled else 1 :]


def label_of(folder: str) -> str:
    """The class that a folder's name stands for: composed, as macOS stores names decomposed and others do not."""
    return unicodedata.normalize("NFC", folder)


def arrange(images: list[str], layout: Layout) -> Arrangement:
    """The layout of a source, from its images' names.

    Args:
        images: names with `/` between the parts.
        layout: what the top folders are. `auto` takes them for parts where each of them is called like one and one is
            `train`, and for classes where nothing speaks for parts.

    Raises:
        ParameterError: what the top folders are cannot be told, or parts are asked for and there is no `train`.
    """
    depth = _wrapping(images, layout)
    tops = _tops(images, depth)
    doubled = {top for top, below in tops.items() if {each.lower() for each in below} == {top.lower()}}
    inner = _tops((name for name in images if name.split("/")[depth] in doubled), depth + 1)
    tops |= {top: inner[below] for top in doubled for below in tops[top]}
    named = {top: known for top in sorted(tops) if (known := _part(top))}
    found = Arrangement(depth, doubled=doubled)
    if not _are_parts(tops, named, layout):
        found.doubled = set()
        return found
    # One folder for each part; a second one for it is left out with a note.
    labels: set[str] = set()
    for part in PARTS:
        ranked = sorted((rank, top) for top, (of, rank) in named.items() if of == part)
        candidates = [top for _, top in ranked]
        if not candidates:
            continue
        chosen = candidates[0]
        if part == "test":
            # A folder without labels, or with others than train's, is no test part where another one is.
            chosen = next((top for top in candidates if not _unfit(tops[top], labels)), chosen)
        found.parts[chosen] = part
        for top in candidates:
            if top != chosen:
                why = _unfit(tops[top], labels) if part == "test" else ""
                found.notes.append(f"{short(top)} is left out: {why or f'{short(chosen)} is the {part} part'}")
        if part == "train":
            labels = set(map(label_of, tops[chosen]))
    found.notes += [f"{short(top)} is left out: not called like a part" for top in sorted(tops) if top not in named]
    return found


def _wrapping(images: list[str], layout: Layout) -> int:
    """Number of folders around everything: `cifar10/train/…` is read as `train/…`."""
    # A folder of parts is no wrapping even where it is alone, nor is a class: images must lie a level further down.
    depth = 0
    while images and all(name.count("/") > depth + 1 for name in images):
        tops = {name.split("/")[depth] for name in images}
        if len(tops) > 1:
            break
        if layout != "classes" and _exact(tops.pop()) and not _hold_parts({n.split("/")[depth + 1] for n in images}):
            break
        depth += 1
    return depth


def _tops(images: Iterable[str], depth: int) -> Tops:
    tops: Tops = {}
    for name in images:
        levels = name.split("/", depth + 2)[depth:]
        if len(levels) > 1:
            tops.setdefault(levels[0], set()).add(levels[1] if len(levels) > 2 else "")
    return tops


def _are_parts(tops: Tops, named: dict[str, tuple[str, int]], layout: Layout) -> bool:
    """Whether the top folders are parts. Raises ParameterError where that cannot be told."""
    trains = [top for top, (part, _) in named.items() if part == "train"]
    if layout == "parts" and not trains:
        raise ParameterError(
            f"layout: parts given, but no folder is called train; found: {listed(map(shown, tops)) or 'none'}"
        )
    if layout != "auto":
        return layout == "parts"
    divided = [top for top in trains if len(tops[top] - {""}) > 1]
    if (
        trains
        and len(named) == len(tops)
        and len({top.lower() for top in trains}) == 1
        and (divided or any(map(_exact, trains)))
    ):
        return True
    # Classes, unless something speaks for parts as well.
    if divided:
        others = [top for top in tops if top != divided[0]]
        raise _ambiguous(f"{short(divided[0])} may be the training part, beside {listed(map(shown, others))}")
    alike: dict[frozenset[str], str] = {}
    for top in sorted(tops):
        below = tops[top] - {""}
        if len(below) > 1 and (other := alike.setdefault(frozenset(map(label_of, below)), top)) != top:
            raise _ambiguous(f"{short(other)} and {short(top)} have the same folders ({listed(map(shown, below))})")
        if len(tops) > 1 and _hold_parts(below):
            raise _ambiguous(
                f"{short(top)}, beside which there are others, has the folders {listed(map(shown, below))}"
            )
    return False


def _ambiguous(what: str) -> ParameterError:
    return ParameterError(
        f"layout: auto given, but whether folders are parts or classes cannot be told: {what}; allowed: parts (then they "
        "are to be called train, test, …; others are left out) or classes"
    )


def _unfit(below: set[str], labels: set[str]) -> str:
    """Why a folder is no test part; "" where it is one."""
    if "" in below:
        return "it has images in no class folder"
    strange = set(map(label_of, below)) - labels
    return f"it has classes that train has not ({listed(map(shown, strange))})" if strange else ""


def _hold_parts(folders: set[str]) -> bool:
    return len(folders) > 1 and all(map(_exact, folders)) and any(_exact(each) == "train" for each in folders)


def _exact(folder: str) -> str:
    """The part whose name a folder has; "" where it has none."""
    return next((part for part, names in PARTS.items() if folder.lower() in names), "")


def _part(folder: str) -> tuple[str, int] | None:
    """The part that a folder is called like, and the rank of the name; `seg_train`, `testSet`, `val2017` rank last."""
    if part := _exact(folder):
        return part, PARTS[part].index(folder.lower())
    words = [_GLUED.sub("", word.lower()) for word in _WORD.findall(folder)]
    found = {
        (part, len(PARTS[part]) + PARTS[part].index(word))
        for word in (*words[:1], *words[-1:])
        for part in ("train", "test")
        if word in PARTS[part]
    }
    return found.pop() if len(found) == 1 else None
