"""The teacher of `distill_student`: the model that `distill.teacher` names, and what its student is made from."""

from __future__ import annotations

import os
from pathlib import Path

from common import BACKDOORED, CLEAN, PRIOR, PURIFIED, ROBUST, STUDENT

from parameters import PARAMS, Params, section
from unpoison.core.errors import UserError
from unpoison.core.files import sha256_file
from unpoison.models.checkpoint import DESCRIPTION, digest_of

# The clean model is of a set that no defence may see. The others may not be there yet when `check_params` looks at the teacher.
OTHERS = (CLEAN, PRIOR, PURIFIED, ROBUST, STUDENT)


def teacher_of(params: Params) -> Path:
    """The teacher's folder: `models/backdoored`, however it is written, or that of a model from elsewhere.

    Raises:
        UserError: no model lies there, or it is another one that this pipeline makes.
    """
    given = section(params, "distill").get("teacher")
    said = f"{PARAMS}: distill.teacher: {given!r} given"
    allowed = f"allowed: {BACKDOORED}, or the folder of a model from elsewhere, {DESCRIPTION} and its weights"
    if not isinstance(given, str) or not given:
        raise UserError(f"{said}, {allowed}")
    place = os.path.abspath(given)
    if place == os.path.abspath(BACKDOORED):
        return BACKDOORED
    if any(Path(place).is_relative_to(os.path.abspath(folder)) for folder in OTHERS):
        raise UserError(f"{said}, which other stages write; {allowed}")
    folder = Path(given)
    if not os.path.isfile(folder / DESCRIPTION):
        raise UserError(f"{said}, where no model lies; {allowed}")
    return folder


def made_from_teacher(teacher: Path, poisoned: str) -> dict[str, str]:
    """What a student records of its teacher, by which it belongs to a run.

    Args:
        teacher: the teacher's folder.
        poisoned: digest of the poisoned set that the variations are of. The victim is of that set; a teacher from
            elsewhere has nothing to do with it, and the student names both.
    """
    if teacher == BACKDOORED:
        return {"backdoored": digest_of(teacher)}
    # The description holds the digests of all files of the model, and says how its weights are used.
    return {"poisoned": poisoned, "teacher": sha256_file(teacher / DESCRIPTION)}
