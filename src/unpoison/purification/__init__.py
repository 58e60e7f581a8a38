"""Purification: a backdoored model and a small trusted set in, a model without the backdoor out. One file per method."""

from __future__ import annotations

from . import fe_tuning, fp, fst, ft, ft_init, lp, nad
from .purifier import Purifier

PURIFIERS: dict[str, Purifier] = {
    "ft": ft.PURIFIER,
    "fst": fst.PURIFIER,
    "lp": lp.PURIFIER,
    "fe_tuning": fe_tuning.PURIFIER,
    "ft_init": ft_init.PURIFIER,
    "fp": fp.PURIFIER,
    "nad": nad.PURIFIER,
}
