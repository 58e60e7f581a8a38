"""How often `make audit` suspects a clean model, and how often it finds a backdoor: a row for each model.

    python bench/audit.py --ways resnet18 --seeds 10                     # clean models: false alarms
    python bench/audit.py --ways resnet18/badnets resnet18/blended       # backdoored ones, each with seed 0
    python bench/audit.py --ways compact --seeds 1 --quick               # whether it runs; nothing is written

A way is a network, or a network and an attack. 4,800 digits, the recipe `small` for 8 epochs without augmentation (with it a
network this narrow hardly learns a small trigger: ASR 0.48), the attack as published at a rate of 0.1 with target 0. The audit
is that of the command: 200 other digits are given, 60 held out, 70 trusted and 70 suspects (`audit.scenario`), methods with the
parameters of `params/`. Networks are narrow and trainings short for the sake of the time that fifteen audits take on a core.
Nothing was chosen by what inspectors, detectors or purifiers did. `hit` is 1 where an inspector flags the target, `flagged` the
number of classes that it flags; `tpr` is a detector's share of held-out images with the trigger that its rule flags, as if they
had been among the suspects, `fpr` that of the suspects.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from ruamel.yaml import YAML

from pairs import RESULTS, ROOT, report
from unpoison import models
from unpoison.attacks import SINGLE, hand_of
from unpoison.audit.scenario import DETECTORS as SCORED
from unpoison.audit.scenario import INSPECTORS as INSPECTED
from unpoison.audit.scenario import RESERVE, TEST_SHARE, purifiers_for
from unpoison.compute.inference import features_of, logits_of
from unpoison.crafting.attack import intent
from unpoison.crafting.context import Context
from unpoison.crafting.craft import craft
from unpoison.data.imageset import ImageSet
from unpoison.data.verdicts import Verdict
from unpoison.detection import DETECTORS
from unpoison.detection.detector import Suspect
from unpoison.evaluation.metrics import accuracy
from unpoison.inspection import INSPECTORS
from unpoison.models.classifier import Classifier
from unpoison.poisoning.trigger import Trigger
from unpoison.poisoning.triggered import triggered_of
from unpoison.purification import PURIFIERS
from unpoison.reporting.audit import kind_of
from unpoison.sources import digits
from unpoison.sources.splits import SplitSettings, arrange
from unpoison.stress.reversed import reversed_figures
from unpoison.training.loop import fit
from unpoison.training.recipes import recipe_named

FILE = "audit.csv"
TRAIN, GIVEN, EPOCHS, TARGET = 4800, 200, 8, 0
NETWORKS: dict[str, dict[str, Any]] = {
    "resnet18": {"name": "resnet18", "width": 8, "stem": "conv3_pool"},
    "compact": {"name": "compact", "width": 32},
    "torchvision": {"name": "torchvision:resnet18"},
}
ATTACKS = ("badnets", "blended", "sig", "ftrojan", "bpp", "wanet")
WAYS = (*NETWORKS, *(f"{network}/{attack}" for network in NETWORKS for attack in ATTACKS))


def own(family: str, method: str) -> dict[str, Any]:
    """A method's own parameters, as the pipeline has them."""
    return dict(YAML(typ="safe", pure=True).load(Path(ROOT, "params", f"{family}.yaml"))[method] or {})


@cache
def given_images() -> dict[str, ImageSet]:
    """What is given to the audit, in the splits that its stages make of it."""
    images, labels = digits.build({"train": TRAIN, "test": GIVEN})["test"]
    places = arrange({"train": labels}, SplitSettings(test_share=TEST_SHARE, reserve=RESERVE, public=0))
    return {name: ImageSet(images[rows], labels[rows], digits.CLASSES) for name, (_, rows) in places.items()}


def victim(way: str, seed: int, quick: bool) -> tuple[Classifier, Trigger | None, Any]:
    """A network that was trained on clean or poisoned digits, its trigger and whom that attacks."""
    network, _, attack = way.partition("/")
    train = ImageSet(*digits.build({"train": TRAIN, "test": GIVEN})["train"], digits.CLASSES)
    recipe = recipe_named({"recipe": "small", "epochs": 1 if quick else EPOCHS, "augment": []})
    model = models.build(num_classes=10, image_size=(32, 32), seed=seed, **NETWORKS[network])
    if not attack:
        fit(model, train, recipe, seed=seed, what=way)
        return model.eval(), None, None
    policy = {"poison_rate": 0.1, "target": TARGET, "rate_of": "all" if attack == "sig" else "candidates"}
    poisoned = craft(
        attack, [intent(attack, SINGLE[attack], policy, own("attacks", attack))], Context(train=train, seed=seed)
    )
    hand, data = None, train
    if poisoned.truth.in_training or poisoned.teaching:
        hand = hand_of(poisoned, train, seed=seed)
    else:
        data = poisoned.received(train)
    fit(model, data, recipe, seed=seed, what=way, hand=hand)
    trigger = poisoned.triggers[0] if hand is None else hand.trained()[0]
    return model.eval(), trigger, poisoned.truth.policy


def measured(way: str, seed: int, quick: bool) -> dict[str, Any]:
    """The row of one model."""
    start = time.perf_counter()
    model, trigger, policy = victim(way, seed, quick)
    trained = time.perf_counter() - start
    given = given_images()
    test, reserve, data = given["test"], given["reserve"], given["train"]
    triggered = None
    if trigger is not None:
        overlay = triggered_of(test, policy, trigger).overlay
        triggered = ImageSet(np.asarray(overlay.images[:]), overlay.labels, test.classes)

    def figures_of(each: Classifier) -> dict[str, float]:
        found = {"acc": accuracy(logits_of(each, test), test.labels)}
        return found | ({} if triggered is None else {"asr": accuracy(logits_of(each, triggered), triggered.labels)})

    about: dict[str, Any] = {
        "network": kind_of(model.description),
        "attack": way.partition("/")[2] or "none",
        "seed": seed,
        "held_out": len(test),
        "trusted": len(reserve),
        **figures_of(model),
    }
    verdicts: dict[str, Verdict] = {}
    for name in INSPECTED:
        settings = own("detectors", name) | ({"epochs": 2} if quick and "epochs" in own("detectors", name) else {})
        verdicts[name] = INSPECTORS[name].inspect(model, reserve, seed=seed, **settings)
        flagged = np.flatnonzero(verdicts[name].flagged).tolist()
        about |= {f"{name}.flagged": len(flagged), f"{name}.index": round(float(verdicts[name].anomaly.max()), 3)}
        about[f"{name}.foremost"] = int(verdicts[name].anomaly.argmax())
        if trigger is not None:
            about[f"{name}.hit"] = int(TARGET in flagged)
    about |= detection(model, data, reserve, triggered)
    inverted = next(verdict for verdict in verdicts.values() if "masks" in verdict.aux)
    for name in purifiers_for(batch_norm=True):
        purified = PURIFIERS[name].purify(model, reserve, seed=seed, **own("purifiers", name))
        found = figures_of(purified) | reversed_figures(model, purified, reserve, test, inverted, seed=seed)
        about |= {f"{name}.{key}": value for key, value in found.items()}
    seconds = {"training_s": round(trained), "audit_s": round(time.perf_counter() - start - trained)}
    return {key: round(value, 4) if isinstance(value, float) else value for key, value in about.items()} | seconds


def detection(model: Classifier, data: ImageSet, reserve: ImageSet, triggered: ImageSet | None) -> Mapping[str, float]:
    """Shares of the suspects, and of triggered images among them, that each detector's rule flags."""
    joined = data if triggered is None else data.followed_by(triggered)
    suspect = Suspect(
        model=model,
        data=joined,
        features=features_of(model, joined),
        reserve=reserve,
        reserve_features=features_of(model, reserve),
    )
    found = {}
    for name in SCORED:
        flagged = DETECTORS[name].score(suspect, seed=0, **own("detectors", name)).flagged
        if flagged is not None:
            found[f"{name}.fpr"] = float(flagged[: len(data)].mean())
            if triggered is not None:
                found[f"{name}.tpr"] = float(flagged[len(data) :].mean())
    return found


def known(way: str, seed: int) -> bool:
    """Whether the file has the row already: fifteen audits take hours, and are measured in more than one go."""
    file, (network, _, attack) = RESULTS / FILE, way.partition("/")
    if not file.is_file():
        return False
    about = models.build(num_classes=10, image_size=(32, 32), **NETWORKS[network]).description
    rows = pd.read_csv(file)
    return bool(((rows.network == kind_of(about)) & (rows.attack == (attack or "none")) & (rows.seed == seed)).any())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ways", nargs="+", choices=WAYS, default=["resnet18"])
    parser.add_argument(
        "--seeds", type=int, default=1, help="seeds from 0 on; rows that the file has are not measured again"
    )
    parser.add_argument("--quick", action="store_true", help="one epoch, nothing written: whether it runs at all")
    given = parser.parse_args()
    for seed in range(given.seeds):
        for way in given.ways:
            if given.quick or not known(way, seed):
                report([measured(way, seed, given.quick)], FILE, write=not given.quick)


if __name__ == "__main__":
    main()
