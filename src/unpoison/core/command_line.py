"""How the project's commands end: in one line, and with an exit status that is not 0, for what the user can put right."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager

from .errors import UserError


@contextmanager
def one_line_errors(subject: str, *, again: str) -> Iterator[None]:
    """Raise SystemExit with one line for what the block raises and the user can put right.

    Args:
        subject: what an error of the operating system that names no file is said of.
        again: what the same command does when it is given again, said where it is interrupted.
    """
    try:
        yield
    except UserError as error:
        sys.exit(f"error: {error}")
    except OSError as error:
        # A full or read-only disk, say; what is half-written goes with its temporary name.
        sys.exit(f"error: {UserError(f'{error.filename or subject}: {error.strerror or error}')}")
    except KeyboardInterrupt:
        sys.exit(f"error: interrupted; {again}")
