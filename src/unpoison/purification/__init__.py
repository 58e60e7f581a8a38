"""Purification: a backdoored model and a small trusted set in, a model without the backdoor out. One file per method."""

from __future__ import annotations

from . import anp, bnp, clp, fst, ft, rnp
from .purifier import Purifier

PURIFIERS: dict[str, Purifier] = {
    "ft": ft.PURIFIER,
    "fst": fst.PURIFIER,
    "clp": clp.PURIFIER,
    "bnp": bnp.PURIFIER,
    "anp": anp.PURIFIER,
    "rnp": rnp.PURIFIER,
}
