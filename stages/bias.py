"""Train a network of attributes, and average for each of them the masks of Cognitive Distillation: what it goes by.

It looks at the training set before any attack, and at the trusted reserve, whose images have attributes too. By default no
attribute is named, and the stage ends at once.
"""

from __future__ import annotations

import sys
from dataclasses import asdict, dataclass, field
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))  # where PYTHONSAFEPATH leaves it out

from common import BASE, BIAS, run_stage, say

from parameters import PARAMS, Params, checked, load_params, seed_of
from unpoison.core.arrays import IntArray
from unpoison.core.errors import ParameterError, UserError, file_of, keys_of
from unpoison.core.files import new_folder
from unpoison.core.hyperparameters import Count, NonNegative, Positive
from unpoison.core.manifest import write_absent
from unpoison.core.seeding import derive
from unpoison.data.store import open_split, read_attributes

OFF = "bias.attributes: []"


@dataclass(frozen=True, kw_only=True)
class Settings:
    """The section `bias`; all but the first as Cognitive Distillation has it, of which they are parameters.

    Attributes:
        attributes: names of the attributes.
        images: most images whose masks are averaged for each.
        steps: steps of Adam per image.
        lr: learning rate of Adam.
        gamma: weight of the mask's norm, a sum over pixels: 0.01 at 32 px, 0.001 at 224 px.
        beta: weight of its total variation.
    """

    attributes: list[str] = field(default_factory=list)
    images: Count = 128
    steps: Count = 100
    lr: Positive = 0.1
    gamma: NonNegative = 0.01
    beta: NonNegative = 10.0


def settings(params: Params) -> Settings:
    wanted = Settings(**checked(params, "bias", Settings))
    if len(set(wanted.attributes)) != len(wanted.attributes):
        raise UserError(f"{PARAMS}: bias.attributes: {wanted.attributes!r} given, allowed: each once")
    return wanted


def main() -> list[Path]:
    params = load_params()
    wanted, seed = settings(params), seed_of(params)
    if not wanted.attributes:
        write_absent(BIAS, OFF)
        return [BIAS]
    return _measure(params, wanted, seed)


def _measure(params: Params, wanted: Settings, seed: int) -> list[Path]:
    # Here and not above: these import torch, which takes longer than all that most runs have to do here.
    from training import network_of, recipe_of
    from unpoison import models
    from unpoison.bias.heads import fit_attributes
    from unpoison.bias.masks import attribute_masks
    from unpoison.compute.device import machine
    from unpoison.data.bias import NETWORK, write_bias

    network, recipe = network_of(params), recipe_of(params, "train")
    names = tuple(wanted.attributes)
    train, reserve = open_split(BASE, "train"), open_split(BASE, "reserve")
    with file_of(PARAMS), keys_of("bias"):
        values = binary("train", names)
        held_out = binary("reserve", names)
    about = {"image_size": train.image_size, "channels": train.channels, **network}
    model = models.build(**about, num_classes=len(names), seed=derive(seed, "bias/weights"))
    with file_of(PARAMS), keys_of("train"):
        history = fit_attributes(model, train, values, recipe, seed=seed)
    arguments = {key: value for key, value in asdict(wanted).items() if key != "attributes"}
    with file_of(PARAMS), keys_of("data"):
        found = attribute_masks(model, reserve, names, held_out, shares=values.mean(0), seed=seed, **arguments)
    made_from = {"base": train.digest}
    with new_folder(BIAS) as staging:
        made_by = {"stage": "bias", "recipe": asdict(recipe), "seed": seed, "machine": machine()}
        models.save(model, staging / NETWORK, classes=names, made_by=made_by, made_from=made_from)
        write_bias(staging, found, parameters={"seed": seed, **arguments}, made_from=made_from)
    said = ", ".join(
        f"{one.name}: accuracy {one.accuracy:.3f}, mask largest at {one.peak} ({one.images} images)" for one in found
    )
    say(f"bias: loss {history.epochs[-1]['loss']:.4f}; {said}")
    return [BIAS]


def binary(split: str, names: tuple[str, ...]) -> IntArray:
    """The values of attributes of a split, int64 [n, len(names)].

    Raises:
        ParameterError: for `attributes`; one that there is not, or that has other values than 0 and 1.
    """
    there = read_attributes(BASE, split)
    for name in names:
        if name not in there.names:
            listed = ", ".join(there.names[:40]) or "none, the split has no attributes"
            raise ParameterError(f"attributes: {name!r} given, allowed of {split}: {listed}")
        if (values := there.of(name)).size and values.max() > 1:
            raise ParameterError(
                f"attributes: {name!r} given, whose values go up to {values.max()}; allowed: those of 0 and 1"
            )
    return there.values[:, [there.names.index(name) for name in names]]


if __name__ == "__main__":
    run_stage("bias", main)
