"""Stress tests of a purified model as an artefact: figures by name, and ACC and ASR along a line of networks."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Annotated, Any, Literal

from annotated_types import Len
from pydantic import Field

from ..core.errors import UserError
from ..core.files import new_folder
from ..core.hyperparameters import Fraction
from ..core.manifest import Described, Manifest, check_describes, read_manifest, write_manifest

FORMAT, DESCRIPTION = "unpoison-stress-1", "stress.json"
Figure = Literal[
    "retuned_acc",
    "retuned_asr",
    "retuned_ra",
    "retuned_asr_clean",
    "reactivated_asr",
    "reactivated_asr_clean",
    "reactivated_untriggered",
    "reactivated_untriggered_clean",
    "reversed",
    "reversed_purified",
    "reversed_retuned",
    "control",
    "control_purified",
    "control_retuned",
]


class LineManifest(Described):
    """ACC and ASR of networks on a line, as `stress.json` has them."""

    t: Annotated[list[Fraction], Len(2, 10_000)]
    acc: Annotated[list[Fraction], Len(2, 10_000)]
    asr: Annotated[list[Fraction], Len(0, 10_000)] = Field(default_factory=list)


class StressManifest(Manifest):
    """What `stress.json` holds: a purifier's name, the parameters of the tests, and what they measured."""

    method: str
    parameters: dict[str, Any]
    figures: dict[Figure, Fraction]
    line: LineManifest


@dataclass(frozen=True, kw_only=True)
class Line:
    """ACC and ASR of networks on a line.

    Attributes:
        t: places, rising from 0, the purified model, to 1, the backdoored one.
        acc: ACC at each.
        asr: ASR at each; none where no test image carries a trigger.
    """

    t: list[float]
    acc: list[float]
    asr: list[float] = field(default_factory=list)


@dataclass(frozen=True, kw_only=True)
class Stressed:
    """What stress tests measured of one purified model.

    Attributes:
        figures: shares in [0, 1] by name (`Figure`).
        line: ACC and ASR on the line from it to the backdoored model.
    """

    figures: Mapping[str, float]
    line: Line


def save_stressed(
    stressed: Stressed, folder: Path, *, method: str, parameters: dict[str, Any], made_from: dict[str, str]
) -> None:
    """Write `stress.json`.

    Args:
        stressed: what was measured.
        folder: folder that is made or replaced.
        method: purifier whose model it was.
        parameters: those of the tests.
        made_from: digest by name of each artefact that was read.
    """
    with new_folder(folder) as staging:
        line = {"t": stressed.line.t, "acc": stressed.line.acc, "asr": stressed.line.asr}
        about = {"format": FORMAT, "method": method, "parameters": parameters, "figures": dict(stressed.figures)}
        write_manifest(staging, DESCRIPTION, {**about, "line": line, "made_from": made_from})


def load_stressed(folder: Path, *, method: str | None = None) -> Stressed:
    """What `save_stressed` wrote.

    Args:
        folder: folder of the artefact.
        method: purifier that it must be of; None: any.

    Raises:
        UserError: a file that is missing or of another format; tests of another model; figures of another name, or that are
            no shares; a line that does not lead from 0 to 1, or has not a figure for each place.
    """
    path, about = folder / DESCRIPTION, read_manifest(folder, DESCRIPTION, FORMAT, StressManifest)
    check_describes(path, about, method=method)
    t, acc, asr = about.line.t, about.line.acc, about.line.asr
    if (t[0], t[-1]) != (0, 1) or any(first >= second for first, second in pairwise(t)):
        raise UserError(f"{path}: line.t: allowed: places that rise from 0 to 1")
    for key, values, lengths in (("acc", acc, {len(t)}), ("asr", asr, {0, len(t)})):
        if len(values) not in lengths:
            raise UserError(
                f"{path}: line.{key}: {len(values)} figures found, allowed: one for each of {len(t)} places"
            )
    return Stressed(
        figures={str(name): value for name, value in about.figures.items()}, line=Line(t=t, acc=acc, asr=asr)
    )
