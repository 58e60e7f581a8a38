"""Purification: a backdoored model and a small trusted set in, a model without the backdoor out. One file per method."""

from __future__ import annotations

from . import fst, ft, i_bau, sau
from .purifier import Purifier

PURIFIERS: dict[str, Purifier] = {
    "ft": ft.PURIFIER,
    "fst": fst.PURIFIER,
    "i_bau": i_bau.PURIFIER,
    "sau": sau.PURIFIER,
}
