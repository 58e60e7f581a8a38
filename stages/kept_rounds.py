"""Where the rounds of the victim's federation lie: the stage that grades them runs no code of the training."""

from __future__ import annotations

from pathlib import Path

ROUNDS = Path("models/rounds")
"""The global model after each round that is kept; of a victim that no federation trained none."""
