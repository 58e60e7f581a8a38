"""What stages that look at a data set do where the victim of the attack receives a model and no data set was poisoned."""

from __future__ import annotations

from pathlib import Path

from common import POISONED, say

from unpoison.core.manifest import write_absent
from unpoison.data.store import received_of

NO_SET = "not applicable: the victim receives a model, no data set is poisoned"


def without_set(stage: str, folder: Path) -> bool:
    """Whether there is no poisoned set; `folder`, the artefact of a stage, then says so in its place."""
    if received_of(POISONED) != "model":
        return False
    write_absent(folder, NO_SET)
    say(f"{stage}: {NO_SET}")
    return True
