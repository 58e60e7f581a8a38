"""Purification: a backdoored model and a small trusted set in, a model without the backdoor out. One file per method."""

from __future__ import annotations

from . import bti_dbf, fst, ft, pam
from .purifier import Purifier

PURIFIERS: dict[str, Purifier] = {
    "ft": ft.PURIFIER,
    "fst": fst.PURIFIER,
    "bti_dbf": bti_dbf.PURIFIER,
    "pam": pam.PURIFIER,
}
