"""The exceptions whose message is meant for a user."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager

LONGEST = 1600
"""Bytes of a message at most: a value or a name of any length may be in it."""


class UserError(ValueError):
    """Something the user can put right: a parameter, a file, a folder.

    The message is one line that names the key or file, what was given and what is allowed. Stage scripts print it and
    exit with status 1; callers of the library catch it as a ``ValueError``.
    """

    def __init__(self, message: str) -> None:
        super().__init__(one_line(message))


def one_line(text: str) -> str:
    """A text that a terminal shows as it stands: one line, escapes for what is not printable, the middle of a long one cut out.

    File names, values and a library's own messages may hold anything: line breaks, control characters, half a megabyte.
    """
    # Long ones are cut before anything looks at each character, and again as escapes make them longer.
    text = _shortened(text)
    text = re.sub(r"\s*[\r\n]\s*", " ", text.strip())
    return _shortened("".join(char if char.isprintable() else char.encode("unicode_escape").decode() for char in text))


def _shortened(text: str) -> str:
    """The first two thirds and the end of a text that has more than `LONGEST` bytes."""
    if len(text) <= LONGEST // 4:
        return text
    raw = text.encode(errors="surrogatepass")
    if len(raw) <= LONGEST:
        return text
    # Bytes of a character that the cut divides are dropped; a lone surrogate stays for the caller to escape.
    first, last = raw[: LONGEST * 2 // 3], raw[-(LONGEST // 3 - 8) :]
    while last[0] & 0xC0 == 0x80:
        last = last[1:]
    while first[-1] & 0xC0 == 0x80:
        first = first[:-1]
    return f"{first[:-1].decode(errors='surrogatepass')} … {last.decode(errors='surrogatepass')}"


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
