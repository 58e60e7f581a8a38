"""The exceptions whose message is meant for a user."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager


class UserError(ValueError):
    """Something the user can put right: a parameter, a file, a folder.

    The message is one line that names the key or file, what was given and what is allowed. Stage scripts print it and
    exit with status 1; callers of the library catch it as a ``ValueError``.
    """

    def __init__(self, message: str) -> None:
        # One line, whatever a library's own message within it brings along.
        super().__init__(" ".join(message.split()))


class ParameterError(UserError):
    """An argument that cannot be used: `size: 40 given, allowed: 1 to 32`.

    The library knows its arguments but no file: whoever read them from one puts the place in front (`keys_of`).
    """


@contextmanager
def keys_of(section: str) -> Iterator[None]:
    """Put a section's name in front of the argument that a `ParameterError` in the block names: `badnets.size: …`."""
    try:
        yield
    except ParameterError as error:
        raise ParameterError(f"{section}.{error}") from None


@contextmanager
def file_of(path: object) -> Iterator[None]:
    """Put the file in front as well, which makes it an error for the file's author: `params.yaml: attack.target: …`."""
    try:
        yield
    except ParameterError as error:
        raise UserError(f"{path}: {error}") from None
