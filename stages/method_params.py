"""Write `params/FAMILY.yaml` from the methods' signatures: `make params`, or `python stages/method_params.py`.

Every method has a block there, every parameter of its own a line, with its meaning and its published default. New methods
and parameters come with that default, those that are gone go, and a value that somebody set stays as it is and is marked.
"""

from __future__ import annotations

import inspect
import re
import sys
import textwrap
from collections.abc import Callable, Mapping
from dataclasses import is_dataclass
from io import StringIO
from pathlib import Path
from typing import Any, get_args, get_origin, get_type_hints

sys.path.insert(0, str(Path(__file__).parent))  # where PYTHONSAFEPATH leaves it out

from common import say

from ruamel.yaml import YAML

from parameters import FAMILIES, read_yaml
from unpoison.attacks import ATTACKS
from unpoison.detection import DETECTORS
from unpoison.inspection import INSPECTORS
from unpoison.purification import PURIFIERS
from unpoison.robust import ROBUST
from unpoison.variations import VARIATIONS
from unpoison.visualisation import FIGURES

HEADER = """\
# {Family}: the methods' own parameters, with their published defaults. Written by `make params` from the signatures in
# src/unpoison/{folder}/: values that are set here stay, all else is written anew. For one experiment:
# dvc exp run -S params/{family}.yaml:{example}
"""
METHODS: dict[str, tuple[str, Mapping[str, Any], str]] = {
    "attacks": ("attacks", ATTACKS, "badnets.size=3"),
    "detectors": ("detection/ and inspection", DETECTORS | INSPECTORS, "cd.steps=100"),
    "figures": ("visualisation", FIGURES, "embedding.samples=3000"),
    "purifiers": ("purification", PURIFIERS, "fst.alpha=0.2"),
    "robust": ("robust", ROBUST, "distillation.alpha=0.7"),
    "variations": ("variations", VARIATIONS, "sdedit.steps=10"),
}
WIDTH, COLUMN = 132, 30


def family_text(family: str, present: Mapping[str, Any]) -> str:
    """Text of a family's file; values in `present` stay where a method still has the parameter."""
    folder, methods, example = METHODS[family]
    parts = [HEADER.format(Family=family.capitalize(), family=family, folder=folder, example=example) + "\n"]
    for name, method in methods.items():
        parts.append(_block(name, method.parameters, present.get(name) or {}))
    return "".join(parts).rstrip("\n") + "\n"


def defaults_of(method: Callable[..., Any]) -> dict[str, Any]:
    """A method's own parameters and their defaults, without the seed, which is the run's."""
    if is_dataclass(method):
        return dict(vars(method()))
    parameters = inspect.signature(method).parameters.values()
    own = [p for p in parameters if p.kind is inspect.Parameter.KEYWORD_ONLY and p.name != "seed"]
    return {p.name: list(p.default) if isinstance(p.default, tuple) else p.default for p in own}


def meanings_of(method: Callable[..., Any]) -> dict[str, str]:
    """Meaning of each parameter: the first sentence that the docstring has on it."""
    text = inspect.getdoc(method) or ""
    found: dict[str, str] = {}
    listed = re.search(r"(?:Args|Attributes):\n(.*?)(?:\n\S|\Z)", text, re.S)
    for entry in re.findall(r"^    (\S.*(?:\n {8,}.*)*)", listed[1] if listed else "", re.M):
        names, _, meaning = entry.partition(": ")
        for name in names.split(", "):
            found[name.strip()] = _first_sentence(" ".join(meaning.split()))
    return found


def _first_sentence(text: str) -> str:
    end = re.search(r"(?<!et al)(?<!cf)\.(?=\s|$)", text)
    return text[: end.start()] if end else text


def _block(name: str, method: Callable[..., Any], present: Mapping[str, Any]) -> str:
    """A method's block and the blank line below it, which DVC drops after a list."""
    meanings, defaults, hints = meanings_of(method), defaults_of(method), get_type_hints(method)
    if not defaults:
        return f"{name}: {{}}\n\n"
    lines = [f"{name}:"]
    for key, default in defaults.items():
        value = present.get(key, default)
        published = [] if value == default else [f"published: {_in_line(default)}"]
        comment = "; ".join([*published, *filter(None, [meanings.get(key)])])
        comment = f"  # {textwrap.shorten(comment, WIDTH - 4, placeholder=' …')}" if comment else ""
        _, first, *rest = as_dvc_writes({name: {key: value}}).splitlines()
        # Above what is or may be a list: `-S KEY=[]` breaks a file where a comment stands between a key and its list.
        if rest or _may_be_a_list(hints[key]):
            lines += [*filter(None, [comment]), first, *rest]
        else:
            lines.append(_beside(first, comment) if comment else first)
    return "\n".join(lines) + ("\n" if value and isinstance(value, list) else "\n\n")


def _beside(line: str, comment: str) -> str:
    """A line with its comment, which a long value leaves forty characters."""
    line = line.ljust(COLUMN - 2)
    return line + f"  {textwrap.shorten(comment.strip(), max(42, WIDTH - len(line) - 2), placeholder=' …')}"


def _may_be_a_list(hint: Any) -> bool:
    return get_origin(hint) is list or any(map(_may_be_a_list, get_args(hint)))


def as_dvc_writes(values: Mapping[str, Any]) -> str:
    """The YAML that `dvc exp run -S` leaves behind: in any other form one value set would change lines that it does not touch."""
    stream, yaml = StringIO(), YAML()
    yaml.default_flow_style = False
    yaml.dump(values, stream)
    return stream.getvalue()


def _in_line(value: Any) -> str:
    stream, yaml = StringIO(), YAML(typ="safe", pure=True)
    yaml.default_flow_style = True
    yaml.width = 4096
    yaml.dump(value, stream)
    return stream.getvalue().removesuffix("...\n").strip()


if __name__ == "__main__":
    for family, path in FAMILIES.items():
        path.parent.mkdir(exist_ok=True)
        text = family_text(family, read_yaml(path) if path.is_file() else {})
        path.write_text(text, encoding="utf-8")
        say(f"wrote {path}")
