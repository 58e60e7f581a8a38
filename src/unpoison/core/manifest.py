"""Manifests: the description of an artefact in its folder, checked against a schema, with the digests of its files."""

from __future__ import annotations

import os
import re
from collections.abc import Mapping
from pathlib import Path, PurePosixPath
from reprlib import Repr
from typing import Annotated, Any, TypeVar

from annotated_types import Ge
from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, FailFast, TypeAdapter, ValidationError

from .errors import ParameterError, UserError
from .files import check_regular, new_folder, read_json, recover, sha256_file, write_json, writing

ABSENT = "absent.json"
"""The file in a folder that stands for an artefact that a run does without."""

# What a link in an artefact may lead to besides the artefact itself: a file of DVC's cache, which is named by its digest.
_CACHED = re.compile(r"/files/md5/[0-9a-f]{2}/[0-9a-f]{30}$")
_SHORT = Repr()
_SHORT.maxstring = _SHORT.maxother = 100
_SHORT.maxlevel = 3


def _plain(name: str) -> str:
    """A name of one folder or file in another one."""
    if not name or name in (".", "..") or not name.isprintable() or set(name) & set("/\\"):
        raise ValueError("allowed: the plain name of a file or folder")
    return name


def _digests(files: Any) -> Any:
    """Digest by path of each file of an artefact; every path leads to a place in it."""
    if not isinstance(files, dict):
        raise ValueError("allowed: SHA-256 by name of each file")
    # Here and not by types: one error is enough, and there may be as many as a hostile file has room for.
    for name, digest in files.items():
        parts = PurePosixPath(name).parts
        if not parts or name != "/".join(parts) or name.startswith("/"):
            raise ValueError(f"{_SHORT.repr(name)} found, allowed: paths within the artefact")
        for part in parts:
            _plain(part)
        if not isinstance(digest, str) or not re.fullmatch("[0-9a-f]{64}", digest):
            raise ValueError(f"{_SHORT.repr(name)}: {_SHORT.repr(digest)} found, allowed: a SHA-256")
    return files


Name = Annotated[str, AfterValidator(_plain)]
"""Plain name of a file or folder."""
Names = Annotated[list[str], FailFast()]
"""A list of texts, as long as may be; the first wrong one is reported."""
Size = Annotated[int, Ge(1)]
"""A side, or a number of channels."""
Digests = dict[str, str]
"""Digest by name of an artefact."""


class Described(BaseModel):
    """What a file of JSON says of an artefact; keys that nobody reads may be there as well."""

    model_config = ConfigDict(strict=True, frozen=True, allow_inf_nan=False)


class Manifest(Described):
    """What every manifest holds.

    Attributes:
        files: SHA-256 by path, with "/", of every other file in the folder.
        made_from: digest by name of each artefact that it was made from.
    """

    files: Annotated[dict[str, str], BeforeValidator(_digests)]
    made_from: Digests = {}


M = TypeVar("M", bound=Described)


def described(path: Path, value: Mapping[str, Any], schema: type[M]) -> M:
    """The JSON object of a file as its schema has it.

    Raises:
        UserError: names the file, the first key that is wrong, what it holds and what is allowed.
    """
    try:
        return schema.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_context=False)[0]
        key = ".".join(part if str(part).isidentifier() else _SHORT.repr(part) for part in map(str, first["loc"]))
        given = "nothing" if first["type"] == "missing" else _SHORT.repr(first["input"])
        reason = first["msg"].removeprefix("Value error, ")
        raise UserError(f"{path}: {key or 'it'}: {given} found; {reason[0].lower()}{reason[1:]}"[:1000]) from None


def typed(name: str, value: Any, annotation: Any) -> Any:
    """A value of JSON as an annotation has it. Raises ParameterError for `name` where it is of another type or range."""
    try:
        return TypeAdapter(annotation, config=ConfigDict(strict=True, allow_inf_nan=False)).validate_python(value)
    except ValidationError as error:
        reason = error.errors(include_url=False, include_context=False)[0]["msg"]
        raise ParameterError(f"{name}: {_SHORT.repr(value)} given; {reason[0].lower()}{reason[1:]}") from None


def write_manifest(folder: Path, name: str, content: dict[str, Any]) -> None:
    """Write `folder/name` with `content` and the SHA-256 of every other file in the folder."""
    # In sorted order and with "/" on every system, so the manifest's own bytes are reproducible.
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p != folder / name)
    digests = {str(p.relative_to(folder).as_posix()): sha256_file(p) for p in files}
    write_json(folder / name, {**content, "files": digests})


def read_manifest(folder: Path, name: str, expected: str, schema: type[M]) -> M:
    """The manifest `folder/name`. Raises UserError where it is missing, unreadable, of another format or not as `schema` says."""
    path = _description(folder, name)
    content = read_json(path)
    if content.get("format") != expected:
        raise UserError(f"{path}: format {_SHORT.repr(content.get('format'))} found, allowed: {expected!r}")
    return described(path, content, schema)


def check_describes(path: Path, manifest: Manifest, **wanted: Any) -> None:
    """Raises UserError where the manifest at `path` has another value for a field than is wanted; None: any."""
    for key, value in wanted.items():
        if value is not None and (found := getattr(manifest, key)) != value:
            raise UserError(f"{path}: {key}: {str(found)[:80]!r} found, allowed: {value!r}")


def write_absent(folder: Path, because: str) -> None:
    """Write, in an artefact's place, that this run does without it, and why: which switch turned its branch off."""
    with new_folder(folder) as staging:
        write_json(staging / ABSENT, {"format": "unpoison-absent-1", "because": because})


def reason_absent(folder: Path) -> str | None:
    """Why a run does without the artefact in `folder`, as `write_absent` wrote it; None where nothing says so."""

    class Absent(Described):
        because: str

    path = _description(folder, ABSENT)
    return described(path, read_json(path), Absent).because if os.path.lexists(path) else None


def made_from_of(folder: Path, name: str) -> Digests:
    """Digest by name of each artefact that `folder/name` says it was made from."""

    class MadeFrom(Described):
        made_from: Digests = {}

    path = _description(folder, name)
    return described(path, read_json(path), MadeFrom).made_from


def is_made_from(folder: Path, name: str, **inputs: str) -> bool:
    """Whether the artefact `folder/name` is there and was made from artefacts of these digests.

    Files of an earlier run stay on disk until something replaces them. DVC knows, but a stage that is run by hand, or a
    part of the pipeline, would mix them with those of the present run.

    Args:
        folder: folder of the artefact.
        name: its description, a file with `made_from`.
        inputs: digest by name of each input to compare; it may have been made from others as well.
    """
    if not os.path.lexists(_description(folder, name)):
        return False
    recorded = made_from_of(folder, name)
    return all(recorded.get(key) == digest for key, digest in inputs.items())


def check_made_from(folder: Path, name: str, **inputs: str) -> None:
    """Raises UserError where the artefact `folder/name` is missing or `is_made_from` others than these."""
    recorded = made_from_of(folder, name)
    for key, digest in inputs.items():
        if recorded.get(key) != digest:
            raise UserError(
                f"{folder / name}: made from another {key} ({_SHORT.repr(recorded.get(key, 'none'))[:20]}, the present "
                f"one is {digest[:16]!r}), as after a run that was cut off; run the stage that makes it again"
            )


def check_file(folder: Path, manifest: Manifest, name: str) -> Path:
    """Path of a file of an artefact, once its digest is found to be the manifest's.

    Raises:
        UserError: a file that the manifest does not list, that is missing, that has changed, or that lies elsewhere.
    """
    path = folder / name
    expected = manifest.files.get(name)
    if expected is None:
        listed = ", ".join(sorted(manifest.files)[:10])
        raise UserError(f"{path}: not listed in its manifest; allowed: {listed or 'none'}")
    if not os.path.lexists(path):
        raise UserError(f"{path}: missing, though its manifest lists it; run the stage again, or `dvc checkout`")
    _check_inside(folder, path)
    check_regular(path)
    digest = sha256_file(path)
    if digest != expected:
        raise UserError(
            f"{path}: digest mismatch, the file was truncated or changed: sha256 {digest[:16]}… found, "
            f"{expected[:16]}… recorded; restore it with `dvc checkout`"
        )
    return path


def _description(folder: Path, name: str) -> Path:
    """Path of a description, whose folder has its name back if a kill fell into its replacement."""
    path = folder / name
    if not os.path.lexists(path):
        with writing(folder):
            recover(folder)
    if os.path.lexists(path):
        _check_inside(folder, path)
    return path


def _check_inside(folder: Path, path: Path) -> None:
    """Raises UserError for a link out of an artefact: who made the artefact would choose which files are read."""
    real = os.path.realpath(path)
    if not real.startswith(os.path.realpath(folder) + os.sep) and not _CACHED.search(real):
        raise UserError(f"{path}: a link that leads out of the artefact, allowed: files that lie in it")
