"""The table of docs/attacks.md and the block of params.yaml against the code."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from unpoison.attacks import ATTACKS, multi
from unpoison.poisoning.policy import Policy

ROOT = Path(__file__).resolve().parent.parent
LINES = (ROOT / "docs" / "attacks.md").read_text().splitlines()
START = next(number for number, line in enumerate(LINES) if line.startswith("| attack |"))
END = next(number for number in range(START, len(LINES)) if not LINES[number].startswith("|"))
ROWS = {cells[0].strip("`"): cells for line in LINES[START + 2 : END] if (cells := line.strip("| ").split(" | "))}
PARAMS: dict[str, Any] = yaml.safe_load((ROOT / "params.yaml").read_text())["attack"]


def shown(value: Any) -> str:
    """A default as the table writes it."""
    return value if isinstance(value, str) else json.dumps(value)


def test_every_attack_has_a_row_of_six_cells() -> None:
    assert set(ROWS) == {*ATTACKS, "multi"}
    assert {len(cells) for cells in ROWS.values()} == {6}


@pytest.mark.parametrize("name", ATTACKS)
def test_row_is_what_the_code_says(name: str) -> None:
    module, (_, _, policy, assets, parameters, _) = ATTACKS[name], ROWS[name]
    own, _, others = policy.partition(" (")
    expected = [module.POLICY["label_policy"]]
    expected += [f"`{key}` {shown_ratio(value)}" for key, value in module.POLICY.items() if key != "label_policy"]
    assert own == ", ".join(expected)
    assert set(filter(None, others.rstrip(")").split(", "))) == set(module.POLICIES) - {expected[0]}
    assert (assets == "–") == (not module.ASSETS)
    given = dict(re.findall(r"`(\w+)` \((.*?)\)(?=, `|$)", parameters))
    signature = list(inspect.signature(module.make).parameters.values())[1:]
    assert given == {parameter.name: shown(parameter.default) for parameter in signature}


def shown_ratio(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


@pytest.mark.parametrize("name", ATTACKS)
def test_params_have_every_key_with_the_default(name: str) -> None:
    # The default run has a 4 x 4 patch, where the published one is 3 x 3.
    expected = {key: value.default for key, value in list(inspect.signature(ATTACKS[name].make).parameters.items())[1:]}
    assert PARAMS[name] == expected | ({"size": 4} if name == "badnets" else {})


def test_params_have_every_key_of_the_policy() -> None:
    policy = set(inspect.signature(Policy).parameters)
    assert set(PARAMS) == policy | set(ATTACKS) | {"name", "multi", "surrogate"}
    assert PARAMS["multi"]["triggers"] == list(multi.DEFAULT)
