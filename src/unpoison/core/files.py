"""Files on disk: written whole or not at all, read back only where their SHA-256 is the recorded one. Never pickle."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from .errors import UserError

ABSENT = "absent.json"
"""The file in a folder that stands for an artefact that a run does without."""


def sha256_file(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """SHA-256 of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill under a temporary name; it takes its real name only when the block ends without an error.

    What stood at `folder` before is replaced at that moment, so a failed run leaves the earlier output as it was.
    """
    # Beside its final place, so on the same file system: renaming is then one step, and no copy. What a killed run left
    # there is swept first.
    staging = folder.with_name(f".{folder.name}.partial")
    shutil.rmtree(staging, ignore_errors=True)
    staging.mkdir(parents=True)
    try:
        yield staging
        shutil.rmtree(folder, ignore_errors=True)
        staging.rename(folder)
    finally:
        shutil.rmtree(staging, ignore_errors=True)


@contextmanager
def new_file(path: Path) -> Iterator[Path]:
    """A file to write under a temporary name in the same folder, renamed into place at the end."""
    # With the process's number, as processes that share a store may write the same file at the same time.
    path.parent.mkdir(parents=True, exist_ok=True)
    staging = path.with_name(f".{path.name}.{os.getpid()}.partial")
    try:
        yield staging
        staging.replace(path)
    finally:
        staging.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write a JSON value with its keys sorted: equal values are equal bytes."""
    with new_file(path) as staging:
        staging.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file. Raises UserError where the file is missing or holds anything else."""
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run the stage that makes it, or `dvc pull`") from None
    except ValueError as error:
        raise UserError(f"{path}: not readable as JSON ({error})") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: a {type(value).__name__} found, allowed: a JSON object")
    return value


def write_manifest(folder: Path, name: str, content: dict[str, Any]) -> None:
    """Write `folder/name` with `content` and the SHA-256 of every other file in the folder."""
    # In sorted order and with "/" on every system, so the manifest's own bytes are reproducible.
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / name)
    digests = {str(p.relative_to(folder).as_posix()): sha256_file(p) for p in files}
    write_json(folder / name, {**content, "files": digests})


def read_manifest(folder: Path, name: str, expected: str) -> dict[str, Any]:
    """The manifest `folder/name`. Raises UserError where it is missing, unreadable or of another format than `expected`."""
    manifest = read_json(folder / name)
    if manifest.get("format") != expected:
        raise UserError(f"{folder / name}: format {manifest.get('format')!r} found, allowed: {expected!r}")
    return manifest


def write_absent(folder: Path, because: str) -> None:
    """Write, in an artefact's place, that this run does without it, and why: which switch turned its branch off."""
    with new_folder(folder) as staging:
        write_json(staging / ABSENT, {"format": "unpoison-absent-1", "because": because})


def made_from_of(folder: Path, name: str) -> dict[str, str]:
    """Digest by name of each artefact that `folder/name` says it was made from."""
    return dict(read_json(folder / name).get("made_from", {}))


def is_made_from(folder: Path, name: str, **inputs: str) -> bool:
    """Whether the artefact `folder/name` is there and was made from artefacts of these digests.

    Files of an earlier run stay on disk until something replaces them. DVC knows, but a stage that is run by hand, or a
    part of the pipeline, would mix them with those of the present run.

    Args:
        folder: folder of the artefact.
        name: its description, a file with `made_from`.
        inputs: digest by name of each input to compare; it may have been made from others as well.
    """
    if not (folder / name).is_file():
        return False
    recorded = made_from_of(folder, name)
    return all(recorded.get(key) == digest for key, digest in inputs.items())


def check_file(folder: Path, manifest: dict[str, Any], name: str) -> Path:
    """Path of a file of an artefact, once its digest is found to be the manifest's.

    Raises:
        UserError: a file that the manifest does not list, that is missing, or that has changed.
    """
    path = folder / name
    expected = manifest.get("files", {}).get(name)
    if expected is None:
        raise UserError(f"{path}: not listed in its manifest; allowed: {', '.join(sorted(manifest.get('files', {})))}")
    if not path.is_file():
        raise UserError(f"{path}: missing, though its manifest lists it; run the stage again, or `dvc checkout`")
    digest = sha256_file(path)
    if digest != expected:
        raise UserError(
            f"{path}: digest mismatch, the file was truncated or changed: sha256 {digest[:16]}… found, "
            f"{expected[:16]}… recorded; restore it with `dvc checkout`"
        )
    return path


def load_array(path: Path, *, mmap: bool = False) -> NDArray[Any]:
    """The array in a .npy file, read or mapped; pickled objects are refused.

    Raises:
        UserError: a missing file, or one that is no array.
    """
    try:
        array: NDArray[Any] = np.load(path, mmap_mode="r" if mmap else None, allow_pickle=False)
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run the stage that makes it, or `dvc pull`") from None
    except (ValueError, EOFError, OSError) as error:
        raise UserError(f"{path}: not a readable .npy array ({error})") from None
    return array
