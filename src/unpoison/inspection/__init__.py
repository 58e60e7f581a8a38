"""Inspection: is a model backdoored, and to which class? One file per published method, each with an `Inspector`."""

from __future__ import annotations

from . import mm_bd, neural_cleanse
from .inspector import Inspector

INSPECTORS: dict[str, Inspector] = {
    "neural_cleanse": neural_cleanse.INSPECTOR,
    "mm_bd": mm_bd.INSPECTOR,
}
