"""The one exception whose message is meant for a user, and how a program ends with it."""

from __future__ import annotations


class UserError(ValueError):
    """Something the user can put right: a parameter, a file, a folder.

    The message is one line that names the key or file, what was given and what is allowed. Stage scripts print it and
    exit with status 1; library callers catch it as a ``ValueError``.
    """

    def __init__(self, message: str) -> None:
        super().__init__(" ".join(message.split()))
