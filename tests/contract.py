"""What every method of a family is held to: its own parameters are refused by name, its inputs stay as they were."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from dataclasses import fields
from typing import Any

import numpy as np
import pytest

from unpoison import models
from unpoison.core.errors import ParameterError
from unpoison.core.hyperparameters import check
from unpoison.data.features import Features
from unpoison.data.imageset import ImageSet
from unpoison.data.scores import Scored
from unpoison.detection.detector import Suspect


def own_parameters(schema: Callable[..., Any]) -> dict[str, inspect.Parameter]:
    """A method's own parameters by name: the keyword-only arguments, without the seed."""
    parameters = inspect.signature(schema).parameters
    return {name: p for name, p in parameters.items() if p.kind is p.KEYWORD_ONLY and name != "seed"}


def check_parameters(schema: Callable[..., Any], arguments: dict[str, Any]) -> None:
    """Each own parameter has a default and refuses another type, in one line that begins with its name.

    Args:
        schema: whose keyword-only arguments they are.
        arguments: those that a test gives, which must be allowed.
    """
    names = own_parameters(schema)
    assert check(arguments, schema) == arguments
    for name, parameter in names.items():
        assert parameter.default is not parameter.empty, name
        # A block is what no parameter of any method takes.
        with pytest.raises(ParameterError) as refused:
            check({name: {"a": 1}}, schema)
        assert str(refused.value).startswith((f"{name}: ", f"{name}.")), name
        assert "\n" not in str(refused.value)
    with pytest.raises(ParameterError, match=r"^no_such: unknown key, allowed: "):
        check({"no_such": 1}, schema)


def fingerprint(*inputs: models.Classifier | ImageSet | Features | Suspect | Scored) -> str:
    """SHA-256 of all that a method could change of its inputs."""
    digest = hashlib.sha256()
    for value in inputs:
        if isinstance(value, Suspect):
            held = (getattr(value, field.name) for field in fields(value) if field.name not in ("store", "made_from"))
            digest.update(fingerprint(*held).encode())
        elif isinstance(value, models.Classifier):
            digest.update(weights_of(value))
            digest.update(str([p.requires_grad for p in value.parameters()] + [value.training]).encode())
        elif isinstance(value, ImageSet):
            digest.update(np.ascontiguousarray(value.gather(np.arange(len(value)))).tobytes())
            digest.update(value.labels.tobytes())
        elif isinstance(value, Scored):
            digest.update(
                fingerprint(value.data).encode() + value.values.tobytes() + np.asarray(value.flagged).tobytes()
            )
        else:
            digest.update(np.asarray(value.logits).tobytes() + np.asarray(value.penultimate).tobytes())
    return digest.hexdigest()


def weights_of(model: models.Classifier) -> bytes:
    """Every value of a model, buffers included."""
    return b"".join(value.cpu().numpy().tobytes() for value in model.state_dict().values())
