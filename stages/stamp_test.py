"""Stamp the test split with the attacker's final triggers: what `evaluate` and `report` show is read, not stamped again.

A stage of its own, so that no training sees the test split, and none runs again for what a trigger does at the test.
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # where PYTHONSAFEPATH leaves it out

from common import ATTACKER_TRAINED, ATTACKER_TRIGGERS, BASE, TRIGGERED, run_stage

from parameters import FAMILIES
from unpoison.attacks import restored
from unpoison.core.errors import file_of
from unpoison.data.store import open_split, read_attributes
from unpoison.poisoning.attacker import read_triggers
from unpoison.poisoning.triggered import write_triggered


def main() -> list[Path]:
    attacker, made_from = read_triggers(ATTACKER_TRIGGERS, restored, trained=ATTACKER_TRAINED)
    with file_of(FAMILIES["attacks"]):
        counts = write_triggered(
            TRIGGERED, open_split(BASE, "test"), attacker, made_from, read_attributes(BASE, "test")
        )
    print(f"stamp_test: {', '.join(f'{n} images with {name}' for name, n in counts.items()) or 'no trigger is known'}")
    return [TRIGGERED]


if __name__ == "__main__":
    run_stage("stamp_test", main)
