"""Files on disk: written whole or not at all, opened only where they are regular files, JSON without its ambiguities."""

from __future__ import annotations

import errno
import hashlib
import json
import math
import os
import shutil
import socket
import stat
import time
from collections.abc import Iterator
from contextlib import contextmanager
from glob import escape
from io import BufferedReader
from pathlib import Path
from typing import Any, NoReturn
from uuid import uuid4

from .errors import UserError

_MAX_JSON = 64 << 20
_DAY = 24 * 3600
_HOST = hashlib.sha256(socket.gethostname().encode()).hexdigest()[:8]


def sha256_file(path: Path) -> str:
    """SHA-256 of a file, read in pieces."""
    with open_file(path) as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def sha256_json(value: Any) -> str:
    """SHA-256 of a JSON value, whatever the order of its keys."""
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()


def check_regular(path: Path) -> None:
    """Raises UserError for what is no regular file: opening a pipe or a device could wait for ever."""
    try:
        mode = path.stat().st_mode
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; run the stage that makes it, or `dvc pull`") from None
    except (OSError, ValueError) as error:
        raise UserError(f"{path}: cannot be opened ({_reason(error)})") from None
    if not stat.S_ISREG(mode):
        kind = "a folder" if stat.S_ISDIR(mode) else "a pipe or device"
        raise UserError(f"{path}: {kind} found, allowed: a regular file")


@contextmanager
def open_file(path: Path) -> Iterator[BufferedReader]:
    """A file to read. Raises UserError where there is none, or none that can be read."""
    check_regular(path)
    try:
        file = path.open("rb")
    except OSError as error:
        raise UserError(f"{path}: cannot be opened ({_reason(error)})") from None
    with file:
        yield file


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn an error of the disk in the block (full, read-only, too many open files) into a line that names the path."""
    try:
        yield
    except OSError as error:
        raise disk_error(error, path) from None


def disk_error(error: OSError, path: Path | None = None) -> UserError:
    """The line for an error of the disk or of the system: the file it concerns, else `path`, and the reason."""
    # A temporary name tells a user nothing: then the file or folder is named that was to be written.
    named = error.filename is not None and ".partial" not in str(error.filename)
    what = error.filename if named or path is None else path
    # NumPy reports a disk that fills up without a number: "64 requested and 8 written".
    full = error.errno in (errno.ENOSPC, errno.EDQUOT) or "requested and" in str(error)
    advice = "; make room and run it again" if full else ""
    return UserError(
        f"{what or 'the system'}: {_reason(error)}{advice}; nothing is half-written, what stood there before is kept"
    )


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder to fill under a temporary name; it takes its real name only when the block ends without an error.

    What stood at `folder` before is replaced at that moment, so a failed run leaves the earlier output as it was. A kill
    in that moment leaves it under another name, which `recover` sets right.

    Raises:
        UserError: the disk is full or cannot be written to.
    """
    with writing(folder):
        recover(folder)
        # Beside its final place, so on the same file system: renaming is then one step, and no copy.
        sweep(folder.parent, f".{escape(folder.name)}.*.partial")
        staging = temporary(folder)
        staging.mkdir(parents=True)
        try:
            yield staging
            _exchange(staging, folder)
        finally:
            shutil.rmtree(staging, ignore_errors=True)


def recover(folder: Path) -> None:
    """Give a folder back its name where a kill fell between the two renames of `new_folder`."""
    asides = sorted(folder.parent.glob(f".{escape(folder.name)}.*.replaced"), key=_age)
    for aside in asides:
        if not os.path.lexists(folder):
            # Another process may do the same at this moment, or be between its own two renames, and go on from there.
            _moved(aside, folder)
        elif not _alive(aside):
            _remove(aside)


def _exchange(staging: Path, folder: Path) -> None:
    """Put `staging` in the place of `folder` by two renames, and then remove what stood there."""
    aside = staging.with_suffix(".replaced")
    try:
        _moved(folder, aside)
        # Another process may put its own folder there between the two; it is replaced like any other.
        while not _moved(staging, folder):
            staging.stat()
            _remove(aside)
            _moved(folder, aside)
    except OSError:
        _moved(aside, folder)
        raise
    _remove(aside)


def _moved(source: Path, target: Path) -> bool:
    """Give `source` the name `target`. False where it is not there, or another process has put something at `target`."""
    try:
        source.rename(target)
    except OSError as error:
        if error.errno not in (errno.ENOENT, errno.ENOTEMPTY, errno.EEXIST, errno.ENOTDIR):
            raise
        return False
    return True


@contextmanager
def new_file(path: Path, *, sweeping: bool = True) -> Iterator[Path]:
    """A file to write under a temporary name in the same folder, renamed into place at the end.

    Args:
        path: file that is made or replaced.
        sweeping: whether what a killed process left of this file is removed; that takes a look at the whole folder.

    Raises:
        UserError: the disk is full or cannot be written to.
    """
    with writing(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        if sweeping:
            sweep(path.parent, f".{escape(path.name)}.*.partial")
        staging = temporary(path)
        try:
            yield staging
            staging.replace(path)
        finally:
            with writing(path):
                staging.unlink(missing_ok=True)


def temporary(path: Path) -> Path:
    """A name beside `path` for a file or folder that only this process writes, and that others know to be its."""
    return path.with_name(f".{path.name}.{_HOST}-{os.getpid()}-{uuid4().hex[:8]}.partial")


def sweep(folder: Path, pattern: str) -> None:
    """Remove what killed processes left half-written; that of living ones, on any machine, is left for a day."""
    for leftover in folder.glob(pattern):
        if not _alive(leftover):
            _remove(leftover)


def _alive(path: Path) -> bool:
    """Whether the process that writes under a temporary name may still be at it."""
    host, _, rest = path.name.split(".")[-2].partition("-")
    process = rest.partition("-")[0]
    if host == _HOST and process.isdecimal() and len(process) < 9:
        try:
            os.kill(int(process), 0)
        except OSError as error:
            # Not allowed to signal it: another user's process, which lives.
            if error.errno == errno.ESRCH:
                return False
    # Another machine's processes cannot be asked, nor those of older names; and numbers come round again.
    return time.time() - _age(path) < _DAY


def _age(path: Path) -> float:
    with _gone():
        return path.lstat().st_mtime
    return 0.0


def _remove(path: Path) -> None:
    """Remove a file or a folder, whatever it holds."""
    # Tried and not asked: between question and answer another process may move it.
    try:
        path.unlink(missing_ok=True)
    except OSError:
        shutil.rmtree(path, ignore_errors=True)


@contextmanager
def _gone() -> Iterator[None]:
    """Go on where a file is no longer there: another process was faster."""
    try:
        yield
    except FileNotFoundError:
        return


def write_json(path: Path, value: Any) -> None:
    """Write a JSON value with its keys sorted: equal values are equal bytes."""
    with new_file(path) as staging:
        staging.write_text(json.dumps(value, indent=2, sort_keys=True, ensure_ascii=False) + "\n", encoding="utf-8")


def read_json(path: Path) -> dict[str, Any]:
    """The JSON object in a file.

    Raises:
        UserError: the file is missing or holds anything else; a key is there twice; a number is not finite.
    """
    with open_file(path) as file:
        data = file.read(_MAX_JSON + 1)
    if len(data) > _MAX_JSON:
        raise UserError(f"{path}: longer than {_MAX_JSON >> 20} MiB, allowed: a shorter description")
    try:
        value = json.loads(data.decode(), object_pairs_hook=_object, parse_constant=_constant, parse_float=_real)
        # Half of a surrogate pair is no character: it could be neither printed nor written again.
        if b"\\u" in data:
            json.dumps(value, ensure_ascii=False).encode()
    except RecursionError:
        raise UserError(f"{path}: not readable as JSON (nested too deeply)") from None
    except ValueError as error:
        raise UserError(f"{path}: not readable as JSON ({_reason(error)})") from None
    if not isinstance(value, dict):
        raise UserError(f"{path}: a {type(value).__name__} found, allowed: a JSON object")
    return value


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) < len(pairs):
        seen: set[str] = set()
        twice = next(key for key, _ in pairs if key in seen or seen.add(key))  # type: ignore[func-returns-value]
        raise ValueError(f"the key {twice[:80]!r} is there twice")
    return value


def _constant(text: str) -> NoReturn:
    raise ValueError(f"{text} found, allowed: finite numbers")


def _real(text: str) -> float:
    value = float(text)
    return value if math.isfinite(value) else _constant(text[:80])


def _reason(error: Exception) -> str:
    """An error's own words, without the file's name, in one short line of characters that can be shown."""
    text = str(getattr(error, "strerror", None) or error)[:300]
    return "".join(letter if letter.isprintable() else repr(letter)[1:-1] for letter in text)
