"""Models of the Hugging Face hub that are on this machine: a folder, or a commit of a repository in the hub's cache.

Nothing is fetched here: what a run works with is there before it begins, under a commit's own name.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from .errors import ParameterError, one_line

_COMMIT = re.compile(r"[0-9a-f]{40}")


def folder_of(model: str, revision: str | None, files: Sequence[str], *, key: str = "model") -> Path:
    """The folder of a model's files.

    Args:
        model: a folder, or the id of a repository on the hub whose files are in its cache on this machine.
        revision: of a repository the commit, 40 hexadecimal digits.
        files: patterns of the files that are needed, for the command that fetches them.
        key: name of the argument that `model` was given as, for messages.

    Raises:
        ParameterError: no such folder, or files that were not fetched: with the command that fetches them.
    """
    folder = Path(model)
    if folder.is_dir():
        return folder
    if not re.fullmatch(r"[\w.-]+/[\w.-]+", model) or folder.exists():
        raise ParameterError(f"{key}: {model!r} given, allowed: a folder, or OWNER/NAME of a repository on the hub")
    if revision is None or not _COMMIT.fullmatch(revision):
        raise ParameterError(
            f"revision: {revision!r} given for {model}, allowed: the 40 hexadecimal digits of a commit of that repository"
        )
    # Only now, as the import takes longer than most checks.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model, revision=revision, local_files_only=True, allow_patterns=list(files)))
    except HFValidationError as error:
        raise ParameterError(f"{key}: {model!r} given, allowed: OWNER/NAME ({one_line(str(error))[:200]})") from None
    except LocalEntryNotFoundError:
        include = " ".join(f"--include {pattern!r}" for pattern in files)
        raise ParameterError(
            f"{key}: {model!r} given, which is not on this machine; allowed: after "
            f"`hf download {model} --revision {revision} {include}`"
        ) from None
