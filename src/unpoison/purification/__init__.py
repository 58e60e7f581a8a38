"""Purification: a backdoored model and a small trusted set in, a model without the backdoor out.

Every method is `purify(model, reserve, *, seed, …) -> Classifier`: a new model, the input left as it was.
"""

from __future__ import annotations

from collections.abc import Callable

from ..models.classifier import Classifier
from . import fst, ft

PURIFIERS: dict[str, Callable[..., Classifier]] = {
    "ft": ft.purify,
    "fst": fst.purify,
}
