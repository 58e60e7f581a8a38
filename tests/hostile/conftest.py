"""The outcomes of the hostile suite, counted at the end of a run."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator

import pytest

from hostile.harness import OUTCOMES

KEY = "hostile outcome"


@pytest.fixture(autouse=True)
def _outcomes(request: pytest.FixtureRequest) -> Iterator[None]:
    """Hand the outcomes of a test to its report, which reaches the summary from whatever process ran the test."""
    OUTCOMES.clear()
    yield
    request.node.user_properties.extend((KEY, kind) for kind in OUTCOMES)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    counts: Counter[str] = Counter()
    for reports in terminalreporter.stats.values():
        for report in reports:
            if getattr(report, "when", None) == "teardown" or getattr(report, "outcome", "") == "passed":
                counts.update(str(kind) for key, kind in getattr(report, "user_properties", ()) if key == KEY)
    if counts:
        terminalreporter.write_line("hostile inputs: " + ", ".join(f"{n} {kind}" for kind, n in sorted(counts.items())))
