"""Poison the training set: an overlay, which is what a victim receives, and apart from it the truth."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

from common import BASE, PARAMS, POISONED, TRUTH, Params, checked, load_params, run_stage, section, seed_of
from unpoison.attacks import ATTACKS
from unpoison.attacks.policy import Policy, choose_samples
from unpoison.attacks.truth import Truth, write_truth
from unpoison.data.store import new_overlay, open_split
from unpoison.errors import UserError
from unpoison.hyperparameters import check


def settings(params: Params) -> tuple[str, Policy, dict[str, Any]]:
    """The attack's name ("none" for data of unknown origin), the policy, the attack's own arguments."""
    attack = section(params, "attack")
    name = attack.pop("name", None)
    if name != "none" and name not in ATTACKS:
        raise UserError(f"{PARAMS}: attack.name: {name!r} given, allowed: none, {', '.join(ATTACKS)}")
    policy_values = {key: value for key, value in attack.items() if key not in ATTACKS}
    policy = Policy(**check(policy_values, Policy, where=f"{PARAMS}: attack"))
    return name, policy, checked(params, f"attack.{name}", ATTACKS[name].make) if name != "none" else {}


def main() -> list[Path]:
    params = load_params()
    seed, (name, policy, arguments) = seed_of(params), settings(params)
    train = open_split(BASE, "train")
    if name == "none":
        nothing = np.zeros(0, np.int64)
        with new_overlay(POISONED, train, nothing, nothing):
            write_truth(TRUTH, None)
        print("poison: attack none, the training set is left as it is and no truth is known", flush=True)
        return [POISONED, TRUTH]
    trigger = ATTACKS[name].make((*train.image_size, train.channels), seed, **arguments)
    index = choose_samples(policy, train.labels, len(train.classes), seed=seed)
    new_labels = policy.new_labels(train.labels[index], len(train.classes))
    with new_overlay(POISONED, train, index, new_labels) as overlay:
        for keys in train.chunks(index):
            overlay.write(np.searchsorted(index, keys), trigger(train.gather(keys), keys))
    mask = np.zeros(len(train), bool)
    mask[index] = True
    write_truth(TRUTH, Truth(name, mask, train.labels, policy, trigger))
    print(f"poison: {len(index)} of {len(train)} samples ({len(index) / len(train):.2%} of all)", flush=True)
    return [POISONED, TRUTH]


if __name__ == "__main__":
    run_stage("poison", main)
