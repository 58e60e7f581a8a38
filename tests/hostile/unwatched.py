"""Cases of which a line is all there is to see: many of them in the time that one watched process takes."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from hostile.harness import Case, Door, Refused, assert_line
from unpoison.core.errors import UserError


def answered(door: Door, cases: list[Case], tmp_path: Path) -> None:
    """Assert the outcome of cases that need no watch."""
    for case in cases:
        folder = tmp_path / case.name
        folder.mkdir()
        case.make(folder)
        if isinstance(case.outcome, Refused):
            with pytest.raises(UserError) as caught:
                door(folder)
            assert_line(str(caught.value))
            assert re.search(case.outcome.pattern, str(caught.value)), (case.name, str(caught.value))
        else:
            value, expected = door(folder), case.outcome.value
            assert expected(value) if callable(expected) else value == expected, (case.name, value)
