"""Purification: a backdoored model and a small trusted set in, a model without the backdoor out. One file per method."""

from __future__ import annotations

from . import (
    anp,
    bnp,
    bti_dbf,
    clp,
    d3,
    dbr,
    fe_tuning,
    fp,
    fst,
    ft,
    ft_init,
    ft_sam,
    i_bau,
    lmr,
    lp,
    nad,
    nc_unlearn,
    pam,
    rnp,
    sau,
    tsbd,
    unlearn,
)
from .purifier import Purifier

PURIFIERS: dict[str, Purifier] = {
    "ft": ft.PURIFIER,
    "lp": lp.PURIFIER,
    "fe_tuning": fe_tuning.PURIFIER,
    "ft_init": ft_init.PURIFIER,
    "fst": fst.PURIFIER,
    "fp": fp.PURIFIER,
    "nad": nad.PURIFIER,
    "ft_sam": ft_sam.PURIFIER,
    "anp": anp.PURIFIER,
    "i_bau": i_bau.PURIFIER,
    "sau": sau.PURIFIER,
    "rnp": rnp.PURIFIER,
    "bti_dbf": bti_dbf.PURIFIER,
    "pam": pam.PURIFIER,
    "d3": d3.PURIFIER,
    "lmr": lmr.PURIFIER,
    "tsbd": tsbd.PURIFIER,
    "clp": clp.PURIFIER,
    "bnp": bnp.PURIFIER,
    "dbr": dbr.PURIFIER,
    "unlearn": unlearn.PURIFIER,
    "nc_unlearn": nc_unlearn.PURIFIER,
}
