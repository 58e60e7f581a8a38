"""What ends a command ends it in one line."""

from __future__ import annotations

import pytest

from unpoison.core.command_line import one_line_errors
from unpoison.core.errors import UserError


@pytest.mark.parametrize(
    ("raised", "line"),
    [
        (UserError("DATA: 'x' given,\nallowed: a folder"), "error: DATA: 'x' given, allowed: a folder"),
        (OSError(28, "No space left on device"), "error: run: No space left on device"),
        (OSError(13, "Permission denied", "reports/a\nb"), "error: reports/a b: Permission denied"),
        (OSError("by a library's own words"), "error: run: by a library's own words"),
        (KeyboardInterrupt(), "error: interrupted; it goes on"),
    ],
)
def test_one_line(raised: BaseException, line: str) -> None:
    with pytest.raises(SystemExit) as ended, one_line_errors("run", again="it goes on"):
        raise raised
    assert ended.value.code == line


def test_what_the_user_cannot_put_right_keeps_its_traceback() -> None:
    with pytest.raises(ZeroDivisionError), one_line_errors("run", again="it goes on"):
        raise ZeroDivisionError
