"""Robust training: a clean model although the training set is poisoned. One file per method, each a `Robust`."""

from __future__ import annotations

from . import abl, asd, dbd, default_defence, distillation, dst, filter_retrain, gradient_shaping, nab, pdb, vibe
from .robust import Robust

ROBUST: dict[str, Robust] = {
    "distillation": distillation.ROBUST,
    "filter_retrain": filter_retrain.ROBUST,
    "abl": abl.ROBUST,
    "dst": dst.ROBUST,
    "dbd": dbd.ROBUST,
    "asd": asd.ROBUST,
    "nab": nab.ROBUST,
    "pdb": pdb.ROBUST,
    "vibe": vibe.ROBUST,
    "gradient_shaping": gradient_shaping.ROBUST,
    "default_defence": default_defence.ROBUST,
}
