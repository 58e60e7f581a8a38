"""Purification: a backdoored model and a small trusted set in, a model without the backdoor out. One file per method."""

from __future__ import annotations

from . import d3, fst, ft, ft_sam, lmr, tsbd
from .purifier import Purifier

PURIFIERS: dict[str, Purifier] = {
    "ft": ft.PURIFIER,
    "fst": fst.PURIFIER,
    "ft_sam": ft_sam.PURIFIER,
    "d3": d3.PURIFIER,
    "lmr": lmr.PURIFIER,
    "tsbd": tsbd.PURIFIER,
}
