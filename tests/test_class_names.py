"""Classes by number or by name: what an attack's parameters take, and what messages say."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

from unpoison.attacks import ATTACKS
from unpoison.core.errors import ParameterError
from unpoison.crafting.attack import intents_of
from unpoison.poisoning.choice import assign_samples
from unpoison.poisoning.policy import Policy, check_classes, in_numbers

NAMES = ("ant", "10", "bee", "0")
LABELS = np.repeat(np.arange(4), [40, 30, 20, 10])


@pytest.mark.parametrize(
    ("given", "number"),
    [("ant", 0), ("10", 1), ("bee", 2), ("0", 3), (0, 0), (3, 3), (10, 10), (None, None), (True, True)],
)
def test_a_whole_number_is_an_index_and_a_text_is_a_name(given: Any, number: Any) -> None:
    assert in_numbers({"target": given, "shift": "x"}, NAMES) == {"target": number, "shift": "x"}
    assert in_numbers({"sources": [given], "cover_classes": [given]}, NAMES) == {
        "sources": [number],
        "cover_classes": [number],
    }


def test_names_reach_every_trigger() -> None:
    policy = {"target": "bee", "sources": ["0", 1], "cover_ratio": 0.1, "cover_classes": ["ant"]}
    (one,) = intents_of("tact", ATTACKS, policy, {}, NAMES)
    assert (one.policy.target, one.policy.sources, one.policy.cover_classes) == (2, [3, 1], [0])
    triggers = [{"attack": "badnets", "target": "10"}, {"attack": "blended", "target": 3}]
    planned = intents_of("multi", ATTACKS, {"target": "ant"}, {"multi": {"triggers": triggers}}, NAMES)
    assert [part.policy.target for part in planned] == [1, 3]
    assert triggers[0]["target"] == "10"


@pytest.mark.parametrize(
    ("attack", "policy", "own", "message"),
    [
        (
            "badnets",
            {"target": "cat"},
            {},
            r"^target: 'cat' given, allowed: the number or the name of a class, out of 0 \(ant\)",
        ),
        ("tact", {"sources": ["bee", "cat"]}, {}, r"^sources: 'cat' given"),
        (
            "multi",
            {},
            {"multi": {"triggers": [{"attack": "badnets", "target": 0}, {"attack": "blended", "target": "x"}]}},
            r"^multi\.triggers\[1\]\.target: 'x' given",
        ),
    ],
)
def test_a_name_that_no_class_has(attack: str, policy: dict[str, Any], own: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        intents_of(attack, ATTACKS, policy, own, NAMES)
    # Before the data are read no name can be judged.
    intents_of(attack, ATTACKS, policy, own)


@pytest.mark.parametrize(
    ("policy", "message"),
    [
        ({"target": 4}, r"target: 4 given, allowed: 0 to 3 \(0\), or the name of a class"),
        ({"label_policy": "source_specific", "target": 2, "sources": [2]}, r"other than the target 2 \(bee\)"),
        ({"cover_ratio": 1.0, "cover_classes": [0]}, r"cover_classes: 0 \(ant\) given"),
    ],
)
def test_messages_name_classes(policy: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        check_classes(Policy(**policy), 4, NAMES)


def test_no_candidate_says_what_there_is() -> None:
    with pytest.raises(ParameterError, match=r"0 are of the target class 1 \(10\), 40 of others"):
        assign_samples(
            [Policy(label_policy="clean_label", target=1)], [None], np.zeros(40, np.int64), 4, seed=0, names=NAMES
        )


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("by", [{"poison_rate": 1.0}, {"poison_count": 60}, {"poison_rate": 0.6, "rate_of": "all"}])
def test_how_much_less_is_said_and_is_the_most(seed: int, by: dict[str, Any]) -> None:
    def tried(**policy: Any) -> str:
        try:
            assign_samples([Policy(**{**by, **policy})], [None], LABELS, 4, seed=seed, names=NAMES)
        except ParameterError as error:
            return str(error)
        return ""

    said = tried()
    assert "which leaves no sample in class" in said
    most = float(said.rpartition("allowed: up to ")[2])
    if "poison_count" in by:
        assert tried(poison_count=int(most)) == ""
        assert "leaves no sample" in tried(poison_count=int(most) + 1)
    else:
        assert tried(poison_rate=most) == ""
        whole = 100 if "rate_of" in by else 60
        assert "leaves no sample" in tried(poison_rate=most + 1 / whole)
