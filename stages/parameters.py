"""Reading the parameters: the scenario in `params.yaml`, the methods' own parameters in `params/FAMILY.yaml`.

This is where keys and files meet the library, which knows neither: a `ParameterError` gets its place in front here.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

from unpoison.core.errors import ParameterError, UserError, file_of, keys_of
from unpoison.core.files import open_file
from unpoison.core.hyperparameters import check, one_of
from unpoison.core.yaml_file import LARGEST, parse_yaml

PARAMS = Path("params.yaml")
FAMILIES = {
    "attacks": Path("params/attacks.yaml"),
    "detectors": Path("params/detectors.yaml"),
    "figures": Path("params/figures.yaml"),
    "purifiers": Path("params/purifiers.yaml"),
    "robust": Path("params/robust.yaml"),
    "variations": Path("params/variations.yaml"),
}
"""The methods' own parameters: a block per method in the file of its family."""

Params = Mapping[str, Any]
"""The sections of `params.yaml` by name, and the blocks of each other file by the file's path."""


def load_params(root: Path = Path()) -> Params:
    """The parameters of the repository at `root` as they are written; each stage checks its own."""
    params = dict(read_yaml(root / PARAMS))
    for path in FAMILIES.values():
        params[path.as_posix()] = read_yaml(root / path)
    return params


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML 1.2 file of sections, as DVC reads it: `1e-05`, which it writes for 0.00001, is a number there."""
    if not path.exists():
        raise UserError(f"{path}: no such file; run stages from the repository's root")
    with open_file(path) as file:
        values = parse_yaml(file.read(LARGEST + 1), str(path))
    for name, value in values.items():
        check_value(value, f"{path}: {name}")
        check_key(name, str(path))
    return values


def check_key(key: Any, where: str) -> None:
    """Raises UserError for a key that is no text: `no`, `1` and `[a, b]` may stand where a key does."""
    if not isinstance(key, str):
        raise UserError(f"{where}: {key!r} given as a key, allowed: text")


def check_value(value: Any, where: str) -> None:
    """Raises UserError for what a parameter cannot be; YAML has dates, sets and whole numbers of any length besides.

    Args:
        value: value of a key, checked to its last item.
        where: file and key for the message.
    """
    if type(value) is dict:
        for key, item in value.items():
            check_key(key, where)
            check_value(item, f"{where}.{key}")
    elif isinstance(value, list):
        for number, item in enumerate(value):
            check_value(item, f"{where}[{number}]")
    elif isinstance(value, int) and abs(value) >= 2**63:
        raise UserError(f"{where}: a whole number of {value.bit_length()} bits given, allowed: up to 2**63 - 1")
    elif isinstance(value, date):
        raise UserError(f"{where}: {value.isoformat()} given, which is a date; allowed: text in quotes, or a number")
    elif value is not None and not isinstance(value, str | bool | int | float):
        raise UserError(f"{where}: a {type(value).__name__} given, allowed: text, number, list or block of keys")


def section(params: Params, name: str) -> dict[str, Any]:
    """A section of `params.yaml` (`distill.train`), which must be there."""
    value: Any = params
    for part in name.split("."):
        if not isinstance(value, Mapping) or part not in value:
            raise UserError(f"{PARAMS}: {name}: missing, allowed: a block of keys")
        value = value[part]
    return block(value, f"{PARAMS}: {name}")


def block(value: Any, where: str) -> dict[str, Any]:
    """A block of keys, empty where nothing was written; `where` is for the message."""
    if value is None:
        return {}
    if not isinstance(value, Mapping):
        raise UserError(f"{where}: {value!r} given, allowed: a block of keys")
    return dict(value)


def seed_of(params: Params) -> int:
    seed = params.get("seed")
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise UserError(f"{PARAMS}: seed: {seed!r} given, allowed: a whole number from 0")
    return seed


def checked(params: Params, name: str, schema: Callable[..., Any], *, without: tuple[str, ...] = ()) -> dict[str, Any]:
    """A section checked against the keyword-only arguments of `schema`; keys in `without` are left to the caller."""
    values = {key: value for key, value in section(params, name).items() if key not in without}
    with file_of(PARAMS), keys_of(name):
        return check(values, schema)


def methods_of(params: Params, family: str, methods: Mapping[str, Any]) -> list[str]:
    """The list `family.methods` of `params.yaml`, names out of `methods`; it may be empty."""
    chosen = section(params, family).get("methods")
    if not isinstance(chosen, list) or len(set(map(str, chosen))) != len(chosen):
        raise UserError(f"{PARAMS}: {family}.methods: {chosen!r} given, allowed: a list out of {', '.join(methods)}")
    for name in chosen:
        with file_of(PARAMS):
            one_of(name, methods, key=f"{family}.methods")
    return chosen


def own_parameters(params: Params, family: str, name: str, method: Callable[..., Any]) -> dict[str, Any]:
    """The checked parameters of one method. `seed` is not among them: it is the run's.

    Args:
        family: a key of `FAMILIES`.
        name: the method's.
        method: whose keyword-only arguments they are.
    """
    path = FAMILIES[family].as_posix()
    blocks = params.get(path, {})
    if name not in blocks:
        raise UserError(f"{path}: {name}: missing, allowed: a block of keys; `make params` writes it")
    values = block(blocks[name], f"{path}: {name}")
    with file_of(path), keys_of(name):
        if "seed" in values:
            raise ParameterError("seed: given, allowed: the run's `seed` in params.yaml")
        return check(values, method)


OFF = "variations.enabled: false"


def with_variations(params: Params) -> bool:
    """Whether this run has the branch of the prior, the variations and the student."""
    enabled = section(params, "variations").get("enabled", True)
    if not isinstance(enabled, bool):
        raise UserError(f"{PARAMS}: variations.enabled: {enabled!r} given, allowed: true, false")
    return enabled
