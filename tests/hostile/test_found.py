"""What fuzzing has found: each input is answered rightly from then on. And the readers' seeds are valid."""

from __future__ import annotations

from pathlib import Path

import pytest

from hostile.fuzz import FOUND, Reader, readers, wrong


@pytest.mark.parametrize("reader", readers(), ids=lambda reader: reader.name)
def test_seeds_are_read_and_found_inputs_answered(reader: Reader, tmp_path: Path) -> None:
    seeds = reader.seeds()
    assert seeds
    values = []
    for data in seeds:
        place = tmp_path / f"seed{len(values)}"
        place.mkdir()
        values.append(reader.read(data, place))
    inputs = sorted((FOUND / reader.name).glob("*.bin"))
    problems = {path.name: wrong(reader, values, path.read_bytes(), _empty(tmp_path)) for path in inputs}
    assert not {name: problem for name, problem in problems.items() if problem}


def _empty(tmp_path: Path) -> Path:
    place = tmp_path / "found"
    place.mkdir(exist_ok=True)
    return place


def test_every_folder_of_found_inputs_has_its_reader() -> None:
    assert {path.name for path in FOUND.glob("*/")} <= {reader.name for reader in readers()}
