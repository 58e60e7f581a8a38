"""The table of docs/attacks.md against the code: policies, assets, parameters and their defaults."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from method_params import defaults_of
from unpoison.attacks import ATTACKS, SINGLE, multi

LINES = (Path(__file__).resolve().parent.parent / "docs" / "attacks.md").read_text(encoding="utf-8").splitlines()
START = next(number for number, line in enumerate(LINES) if line.startswith("| attack |"))
END = next(number for number in range(START, len(LINES)) if not LINES[number].startswith("|"))
ROWS = {cells[0].strip("`"): cells for line in LINES[START + 2 : END] if (cells := line.strip("| ").split(" | "))}


def shown(value: Any) -> str:
    """A default as the table writes it."""
    return value if isinstance(value, str) else json.dumps(value)


def test_every_attack_has_a_row_of_six_cells() -> None:
    assert list(ROWS) == [name for name in ATTACKS if name != "none"]
    assert {len(cells) for cells in ROWS.values()} == {6}
    assert all(all(cell.strip() for cell in cells) for cells in ROWS.values())
    assert any(line.startswith("`attack.name: none`") for line in LINES)


@pytest.mark.parametrize("name", SINGLE)
def test_row_is_what_the_code_says(name: str) -> None:
    attack, (_, _, policy, assets, parameters, _) = SINGLE[name], ROWS[name]
    own, _, others = policy.partition(" (")
    label_policy, *attributes = own.split(", `")
    assert label_policy == attack.policy["label_policy"]
    published = {key: value for key, value in attack.policy.items() if key != "label_policy"}
    assert dict(re.fullmatch(r"(\w+)` (.+)", attribute).groups() for attribute in attributes) == {  # type: ignore[union-attr]
        key: f"{value:g}" if isinstance(value, float) else str(value) for key, value in published.items()
    }
    assert set(filter(None, others.rstrip(")").split(", "))) == set(attack.policies) - {label_policy}
    assert assets == (", ".join(attack.assets) or "–")
    given = dict(re.findall(r"`(\w+)` \((.*?)\)(?=, `|$)", parameters))
    assert given == {key: shown(default) for key, default in defaults_of(attack.parameters).items()}
    assert list(given) == list(defaults_of(attack.parameters))


def test_row_of_several_triggers() -> None:
    _, _, policy, assets, parameters, _ = ROWS["multi"]
    assert policy == "each trigger's own, with the same label policy"
    assert assets == "those of its triggers"
    triggers = re.findall(r"(\w+) to class (\d+)", parameters)
    assert [(name.lower(), int(target)) for name, target in triggers] == [
        (block["attack"], block["target"]) for block in multi.DEFAULT
    ]
    assert list(defaults_of(ATTACKS["multi"].parameters)) == re.findall(r"`(\w+)`", parameters) == ["triggers"]
