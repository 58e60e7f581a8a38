"""Annotated types for hyper-parameters, and the check of a mapping against a callable's keyword-only arguments.

A method's signature is the one place that states its hyper-parameters, their types, ranges and defaults. The same check
serves every section of `params.yaml`: unknown keys, wrong types and values out of range are refused with one line.
"""

from __future__ import annotations

import inspect
import typing
from collections.abc import Callable, Mapping
from functools import cache
from typing import Annotated, Any

from annotated_types import Ge, Gt, Le
from pydantic import BaseModel, ConfigDict, ValidationError, create_model

from .errors import ParameterError

LARGEST = 1e30
"""Largest factor, rate or weight: its products with values of float32 are to be finite, and so are its powers in Python."""
Fraction = Annotated[float, Ge(0), Le(1)]
Positive = Annotated[float, Gt(0), Le(LARGEST)]
NonNegative = Annotated[float, Ge(0), Le(LARGEST)]
Count = Annotated[int, Ge(1), Le(10**9)]
Epochs = Annotated[int, Ge(1), Le(10_000)]  # of a loss per sample each
Whole = Annotated[int, Ge(0)]


def check(values: Mapping[str, Any], schema: Callable[..., Any]) -> dict[str, Any]:
    """The values, checked against the keyword-only arguments of `schema`.

    Args:
        values: values given by a user; defaults of absent keys are not added.
        schema: function or dataclass whose annotations are enforced strictly (no text for a number), ranges included.

    Returns:
        The values in the plain types of the annotations.

    Raises:
        ParameterError: names the first key that is wrong, what was given and what is allowed.
    """
    model = _section(schema)
    # Unknown keys first: the message lists the known ones, which pydantic's would not.
    for key in values:
        if key not in model.model_fields:
            raise ParameterError(f"{key}: unknown key, allowed: {', '.join(model.model_fields) or 'no keys at all'}")
    try:
        checked = model(**values)
    except ValidationError as error:
        # One line for one error: a user mends one key at a time.
        first = error.errors()[0]
        key = ".".join(map(str, first["loc"]))
        given = "nothing" if first["type"] == "missing" else repr(first["input"])
        said = first["msg"].replace("1" + 30 * "0", f"{LARGEST:g}")  # pydantic writes all zeros
        raise ParameterError(f"{key}: {given} given; {said[0].lower()}{said[1:]}") from None
    return {name: getattr(checked, name) for name in values}


@cache
def _section(schema: Callable[..., Any]) -> type[BaseModel]:
    """A pydantic model of the keyword-only arguments of `schema`; NaN and infinity are refused as well.

    Kept: making one takes milliseconds, and a run checks the blocks of all methods.
    """
    hints = typing.get_type_hints(schema, include_extras=True)
    fields: dict[str, Any] = {
        p.name: (hints[p.name], ... if p.default is inspect.Parameter.empty else p.default)
        for p in inspect.signature(schema).parameters.values()
        if p.kind is inspect.Parameter.KEYWORD_ONLY
    }
    return create_model("Section", __config__=ConfigDict(strict=True, extra="forbid", allow_inf_nan=False), **fields)


def one_of(name: Any, options: Mapping[str, Any], *, key: str) -> Any:
    """`options[name]`, or a `ParameterError` for the argument `key` that lists the names."""
    if not isinstance(name, str) or name not in options:
        raise ParameterError(f"{key}: {name!r} given, allowed: {', '.join(options)}")
    return options[name]
