"""What the table of all attacks holds: data sets, training, a row per attack, and published figures."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

RATES = (0.1, 0.05, 0.01)
"""Of all training samples, as BackdoorBench counts them, unless a row says otherwise."""

DATA: dict[str, dict[str, Any]] = {
    "digits": {"name": "digits", "digits": {"train": 2400, "test": 600}, "reserve": 0, "public": 10},
    "cifar10": {"name": "cifar10", "train_limit": 2500, "reserve": 0, "public": 10},
}
MODEL = {"name": "resnet18", "width": 16, "stem": "conv3_pool"}
TRAIN = {"recipe": "default", "epochs": 20, "batch_size": 64}
SURROGATE = {"model": MODEL, "train": TRAIN}


@dataclass(frozen=True)
class Row:
    """An attack with settings.

    Attributes:
        attack: its name.
        own: where its own parameters differ from params.yaml.
        policy: where the policy differs from the attack's.
        published: the attack's name in BackdoorBench's leaderboard; "" where it has none.
        rates: in the place of `RATES`.
        train: where the victim's training differs from `TRAIN`.
    """

    attack: str
    own: dict[str, Any] = field(default_factory=dict)
    policy: dict[str, Any] = field(default_factory=dict)
    published: str = ""
    rates: tuple[float, ...] = RATES
    train: dict[str, Any] = field(default_factory=dict)


# Of the candidates: all samples of the source class cannot be poisoned, it would be empty.
SOURCE_RATES = (0.5, 0.25, 0.05)

ROWS: dict[str, Row] = {
    "badnets": Row("badnets", {"pattern": "white", "size": 3}, published="BadNets"),
    "badnets 4x4": Row("badnets", {"pattern": "checkerboard", "size": 4}),
    "blended": Row("blended", published="Blended"),
    "sig": Row("sig", published="SIG"),
    "trojan": Row("trojan"),
    "trojan optimised": Row("trojan", {"form": "optimised"}, published="TrojanNN"),
    # A robust network needs more images than there are here: the clean one, as D-BR does it.
    "lc": Row("lc", {"adversarial": False}, published="LC"),
    "lf": Row("lf", published="LF"),
    "ssba": Row("ssba", published="SSBA"),
    "nashville": Row("nashville"),
    "dfst": Row("dfst"),
    "feature_collision": Row("feature_collision"),
    "ctrl": Row("ctrl"),
    "ftrojan": Row("ftrojan"),
    "adaptive_blend": Row("adaptive_blend"),
    "adaptive_patch": Row("adaptive_patch"),
    # Why rows above fail where they do: the same with a stronger trigger, a longer training, or without cover samples.
    "ssba visible": Row("ssba", {"l2_weight": 1.0}, rates=RATES[:1]),
    "ftrojan 120": Row("ftrojan", {"magnitude": 120.0}, rates=RATES[:1]),
    "lf longer": Row("lf", rates=RATES[:1], train={"epochs": 60}),
    "ssba longer": Row("ssba", rates=RATES[:1], train={"epochs": 60}),
    "adaptive_blend longer": Row("adaptive_blend", rates=RATES[:1], train={"epochs": 60}),
    "adaptive_patch longer": Row("adaptive_patch", rates=RATES[:1], train={"epochs": 60}),
    "adaptive_blend alone": Row("adaptive_blend", policy={"cover_ratio": 0.0}, rates=(0.1, 0.4)),
    "adaptive_patch alone": Row("adaptive_patch", policy={"cover_ratio": 0.0}, rates=(0.1, 0.4)),
    "tact": Row("tact", policy={"rate_of": "candidates"}, rates=SOURCE_RATES),
    "semantic": Row("semantic", {"colour": "red"}),
    "multi": Row("multi"),
}

SOURCE = "BackdoorBench leaderboard, backdoorbench.github.io at b98eab4: CIFAR-10, PreActResNet-18, no defence"
# ASR by poison rate.
PUBLISHED: dict[str, dict[float, float]] = {
    "BadNets": {0.1: 0.9503, 0.05: 0.8874, 0.01: 0.7473},
    "Blended": {0.1: 0.9992, 0.05: 0.9961, 0.01: 0.9488},
    "LC": {0.1: 0.9992, 0.05: 0.9950, 0.01: 0.9063},
    "SIG": {0.1: 0.9827, 0.05: 0.9709, 0.01: 0.8340},
    "LF": {0.1: 0.9928, 0.05: 0.9803, 0.01: 0.8646},
    "SSBA": {0.1: 0.9786, 0.05: 0.9491, 0.01: 0.7344},
    "TrojanNN": {0.1: 1.0, 0.05: 0.9999, 0.01: 0.9997},
}
