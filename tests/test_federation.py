"""Federated training: aggregation by hand, the algebra of model replacement, splits, privacy, and a run through the stages."""

from __future__ import annotations

import math
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from small_federation import CLEAN, POISON, RECEIVED, RECIPE, trained
from small_networks import strided
from unpoison.core.arrays import IntArray
from unpoison.core.errors import ParameterError, UserError
from unpoison.core.files import read_json
from unpoison.core.seeding import derive
from unpoison.federation import foolsgold, krum, mean, median, norm_clipping, trimmed_mean
from unpoison.federation.aggregator import Updates, within
from unpoison.federation.aggregators import AGGREGATORS
from unpoison.federation.engines import engine_of_clients
from unpoison.federation.kept import load_round, read_rounds, write_rounds
from unpoison.federation.layout import Layout
from unpoison.federation.rounds import attackers_of, clients_of, parts_of, server_step, train_federated
from unpoison.federation.settings import Federation, federation_of
from unpoison.federation.splits import hand_over, split_by_dirichlet, split_evenly
from unpoison.training.loop import fit
from unpoison.training.recipe import Recipe

# Norms 1, √20 and √82.
THREE = torch.tensor([[1.0, 0.0], [2.0, 4.0], [9.0, -1.0]])


def sent(values: Tensor, past: Tensor | None = None) -> Updates:
    return Updates(values, values if past is None else past)


@pytest.mark.parametrize(
    ("name", "arguments", "expected"),
    [
        ("mean", {}, [4.0, 1.0]),
        ("median", {}, [2.0, 0.0]),
        ("trimmed_mean", {"share": 0.34}, [2.0, 0.0]),
        # Squared distances: 17 from the first to the second, 65 to the third, 74 from there to the second; of a tie the first.
        ("krum", {"faulty": 0}, [1.0, 0.0]),
        ("krum", {"faulty": 0, "keep": 2}, [1.5, 2.0]),
        ("norm_clipping", {"bound": 5.0}, [1 + 15 / math.sqrt(82), 4 / 3 - 5 / 3 / math.sqrt(82)]),
        ("norm_clipping", {}, [1 + 3 * math.sqrt(20 / 82), 4 / 3 - math.sqrt(20 / 82) / 3]),
        ("foolsgold", {}, None),
    ],
)
def test_three_clients_by_hand(name: str, arguments: dict[str, Any], expected: list[float] | None) -> None:
    method = AGGREGATORS[name]
    method.check(3, **arguments)
    past = torch.tensor([[1.0, 0.0, 0.0], [0.6, 0.8, 0.0], [0.0, 0.0, 2.0]])
    if expected is None:
        # The first two are alike by 0.6: a weight of 0.4, whose logit plus a half is 0.0945.
        low = math.log(0.4 / 0.6) + 0.5
        expected = [(3 * low + 9) / (2 * low + 1), (4 * low - 1) / (2 * low + 1)]
    assert method.aggregate(sent(THREE, past), **arguments).tolist() == pytest.approx(expected, abs=1e-5)


def test_every_aggregator_has_a_case() -> None:
    assert set(AGGREGATORS) == {"mean", "median", "trimmed_mean", "krum", "norm_clipping", "foolsgold"}
    assert all(
        set(found.tolist()) == {2.0}
        for found in (m.aggregate(sent(torch.full((5, 3), 2.0), torch.eye(5))) for m in AGGREGATORS.values())
    )


def test_even_numbers_of_updates() -> None:
    four = torch.tensor([[4.0], [1.0], [9.0], [2.0]])
    assert median.aggregate(sent(four)).tolist() == [3.0]
    assert trimmed_mean.aggregate(sent(four), share=0.25).tolist() == [3.0]


def test_krum_withstands_one_and_multi_krum_leaves_him_out() -> None:
    five = torch.tensor([[0.0], [1.0], [1.5], [3.0], [100.0]])
    # Two neighbours each: 1 + 2.25, 1 + 0.25, 0.25 + 2.25, 2.25 + 4 and the last far away.
    assert krum.aggregate(sent(five), faulty=1).tolist() == [1.0]
    assert krum.aggregate(sent(five), faulty=1, keep=4).tolist() == [pytest.approx(5.5 / 4)]
    assert mean.aggregate(sent(five)).tolist() == [pytest.approx(21.1)]


def test_foolsgold_gives_twins_nothing_and_pardons() -> None:
    past = torch.tensor([[1.0, 0, 0], [2.0, 0, 0], [0.6, 0.8, 0], [0, 0, 1.0]])
    # The third is alike to the twins by 0.6, they to each other by 1: pardoned 0.36, a weight of 0.64, of which the logit is
    # above 1. Without the pardon it would be 0.0945.
    assert foolsgold.client_weights(past, 1.0).tolist() == [0.0, 0.0, 1.0, 1.0]
    # All alike: nobody is trusted, and nothing changes. A single one has no likeness.
    assert foolsgold.aggregate(sent(torch.ones(3, 2))).tolist() == [0.0, 0.0]
    assert foolsgold.aggregate(sent(torch.ones(1, 2))).tolist() == [1.0, 1.0]


def test_clipping() -> None:
    clipped = within(torch.tensor([[3.0, 4.0], [0.3, 0.4], [0.0, 0.0], [3e30, 4e30]]), 1.0)
    assert torch.allclose(clipped, torch.tensor([[0.6, 0.8], [0.3, 0.4], [0.0, 0.0], [0.6, 0.8]]))
    assert norm_clipping.aggregate(sent(torch.zeros(3, 2))).tolist() == [0.0, 0.0]


@pytest.mark.parametrize(
    ("name", "count", "arguments", "line"),
    [
        ("krum", 4, {}, r"faulty: 1 given for rounds of 4 clients, allowed: up to 0, as krum needs 2 \* faulty \+ 3"),
        ("krum", 2, {"faulty": 0}, r"faulty: 0 given for rounds of 2 clients, allowed: rounds of at least 3 clients"),
        ("krum", 5, {"keep": 5}, r"keep: 5 given, allowed: 1 to 4"),
        (
            "trimmed_mean",
            10,
            {"share": 0.05},
            r"share: 0\.05 given, which leaves out none of 10 updates; allowed: from 0\.1",
        ),
    ],
)
def test_rounds_too_small_for_an_aggregator(name: str, count: int, arguments: dict[str, Any], line: str) -> None:
    with pytest.raises(ParameterError, match=line):
        AGGREGATORS[name].check(count, **arguments)
    with pytest.raises(ParameterError, match=r"aggregator\." + line):
        federation_of({"clients": count, "aggregator": {"name": name, **arguments}})


@pytest.mark.parametrize(
    ("given", "line"),
    [
        ({"clients": 3, "attackers": 4}, r"^attackers: 4 given, allowed: up to 3, the clients"),
        ({"clients": 3, "per_round": 4}, r"^per_round: 4 given, allowed: up to 3, the clients"),
        ({"clients": 9, "per_round": 2, "attackers": 3, "attack_round": 1}, r"^attackers: 3 given, allowed: up to 2"),
        ({"attackers": 1, "attack_round": 21}, r"^attack_round: 21 given, allowed: up to 20, the rounds"),
        ({"scale": 5.0}, r"^scale: 5\.0 given, allowed with attackers 0: 1\.0"),
        ({"attack_round": 1}, r"^attack_round: 1 given, allowed with attackers 0: null"),
        ({"attackers": 1, "scale": float("nan")}, r"^scale: nan given; input should be a finite number"),
        ({"eta": float("inf")}, r"^eta: inf given; input should be a finite number"),
        ({"eta": 0.0}, r"^eta: 0\.0 given; input should be greater than 0"),
        ({"clients": 2.5}, r"^clients: 2\.5 given; input should be a valid integer"),
        ({"alpha": 1.0}, r"^alpha: 1\.0 given, allowed with split equal: null"),
        ({"split": "dirichlet"}, r"^alpha: null given, allowed with split dirichlet: a number above 0"),
        ({"noise": 0.1}, r"^noise: 0\.1 given, allowed with clip null: 0"),
        ({"aggregator": "krum"}, r"^aggregator: 'krum' given; input should be a valid dictionary"),
        ({"aggregator": {}}, r"^aggregator\.name: None given, allowed: mean, median"),
        ({"aggregator": {"name": "median", "share": 1}}, r"^aggregator\.share: unknown key, allowed: no keys at all"),
    ],
)
def test_settings_that_cannot_be(given: dict[str, Any], line: str) -> None:
    with pytest.raises(ParameterError, match=line):
        federation_of(given)


def test_null_leaves_a_setting_at_its_default() -> None:
    assert federation_of({"clients": 4, "eta": None, "aggregator": None}) == Federation(clients=4)
    assert set(Federation(attackers=2, scale=5.0).of_the_server) & {"attackers", "attack_round", "scale"} == set()


def test_an_even_split() -> None:
    parts = split_evenly(11, 4, seed=0)
    assert sorted(map(len, parts)) == [2, 3, 3, 3]
    assert sorted(np.concatenate(parts).tolist()) == list(range(11))
    assert all(np.array_equal(a, b) for a, b in zip(parts, split_evenly(11, 4, seed=0), strict=True))
    assert not all(np.array_equal(a, b) for a, b in zip(parts, split_evenly(11, 4, seed=1), strict=True))
    with pytest.raises(ParameterError, match=r"^clients: 6 given, allowed: up to 5, 2 each of 11 training samples"):
        Federation(clients=6).check_samples(11)


def test_a_split_by_dirichlet() -> None:
    labels = np.repeat(np.arange(4), 50)
    uneven = split_by_dirichlet(labels, 5, 0.5, seed=3)
    assert sum(map(len, uneven)) == 200
    assert sorted(np.concatenate(uneven).tolist()) == list(range(200))
    assert min(map(len, uneven)) >= 2
    again = split_by_dirichlet(labels, 5, 0.5, seed=3)
    assert all(np.array_equal(a, b) for a, b in zip(uneven, again, strict=True))

    def spread(parts: list[IntArray]) -> float:
        return float(np.std([np.bincount(labels[part], minlength=4) for part in parts]))

    # A large concentration gives all clients the same of each class, ten; a small one leaves most of a class to one.
    assert spread(split_by_dirichlet(labels, 5, 1e6, seed=3)) < 1
    assert spread(uneven) > 4
    with pytest.raises(
        ParameterError, match=r"^alpha: 1e-300 given, with which none of 100 draws leaves 5 clients 2 of"
    ):
        split_by_dirichlet(labels, 5, 1e-300, seed=3)


def test_attackers_hold_what_is_poisoned() -> None:
    parts, poisoned = split_evenly(40, 4, seed=0), np.arange(0, 40, 5)
    after = hand_over(parts, poisoned, [1], seed=0)
    assert sorted(np.concatenate(after).tolist()) == list(range(40))
    assert set(poisoned.tolist()) <= set(after[1].tolist())
    assert [len(part) for part in after] == [10] * 4
    # More poison than two attackers hold samples: theirs grow, by turns.
    many = np.arange(30)
    after = hand_over(parts, many, [0, 3], seed=0)
    assert set(np.concatenate([after[0], after[3]]).tolist()) == set(range(30))
    assert abs(len(after[0]) - len(after[3])) <= 2 * 10
    assert sorted(np.concatenate(after).tolist()) == list(range(40))


@pytest.mark.parametrize("past", [1, 4])
def test_replacement_by_hand(past: int) -> None:
    model = strided([8], seed=0)
    layout = Layout(model)
    before, own = layout.vector(model), layout.vector(strided([8], seed=1))
    federation = Federation(clients=past * 4, per_round=4, eta=2.0, attackers=1, scale=past * 4 / 2)
    values = torch.zeros(4, len(before))
    values[2] = (own - before) * federation.scale
    after = server_step(federation, before, values, np.arange(4), {}, layout, torch.zeros(0))
    # G + eta / n * n / eta * (L - G) = L, where the others send nothing.
    assert torch.allclose(after, own, atol=1e-5)
    robust = Federation(clients=4, aggregator={"name": "median"})
    assert torch.equal(server_step(robust, before, values, np.arange(4), {}, layout, torch.zeros(0)), before)


def test_one_attacker_alone_in_his_round_replaces_the_model() -> None:
    settings = {
        "clients": 4,
        "per_round": 1,
        "rounds": 1,
        "local_epochs": 2,
        "eta": 0.5,
        "attackers": 1,
        "attack_round": 1,
    }
    model, history = trained(Federation(**settings, scale=8.0))
    client = attackers_of(Federation(**settings), seed=0)[0]
    part = parts_of(Federation(**settings), CLEAN.labels, POISON, seed=0)[client]
    assert set(POISON.tolist()) <= set(part.tolist())
    local = strided([8], seed=0)
    own = Recipe(**{**vars(RECIPE), "epochs": 2})
    name = f"test, round 1, client {client}"
    fit(local, RECEIVED.subset(part), own, seed=derive(0, "federation/test", 1, client), what=name)
    layout = Layout(model)
    assert torch.allclose(layout.vector(model), layout.vector(local), atol=1e-4)
    assert not torch.allclose(layout.vector(model), layout.vector(trained(Federation(**settings))[0]), atol=1e-3)
    # The record holds his samples and no others.
    assert np.array_equal(np.isfinite(history.losses), np.isin(np.arange(48), part)[None])
    assert [row["epoch"] for row in history.epochs] == [1]


def test_honest_clients_see_nothing_of_the_poison() -> None:
    settings = {"clients": 3, "rounds": 1, "local_epochs": 1}
    # The attack falls into the second round: the first one is as of a clean set with the same parts.
    late = Federation(**{**settings, "rounds": 2}, attackers=1, attack_round=2)
    first: dict[int, Tensor] = {}
    layout = Layout(strided([8], seed=0))
    trained(late, keep=lambda number, model: first.update({number: layout.vector(model)}))
    parts = parts_of(late, CLEAN.labels, POISON, seed=0)
    model = strided([8], seed=0)
    clients, start = clients_of(late, 1, seed=0), layout.vector(model)
    total = torch.zeros_like(start)
    for client in map(int, clients):
        local = strided([8], seed=0)
        own = Recipe(**{**vars(RECIPE), "epochs": 1})
        fit(
            local,
            CLEAN.subset(parts[client]),
            own,
            seed=derive(0, "federation/test", 1, client),
            what=f"test, round 1, client {client}",
        )
        total += layout.vector(local)
    assert torch.allclose(first[1], total / 3, atol=1e-5)
    # And in the second round it matters.
    honest: dict[int, Tensor] = {}
    train_federated(
        strided([8], seed=0),
        CLEAN,
        CLEAN,
        RECIPE,
        late.without_attackers(),
        seed=0,
        what="test",
        keep=lambda number, model: honest.update({number: layout.vector(model)}),
    )
    assert not torch.equal(first[2], honest[2])


def test_the_same_seed_gives_the_same_bytes() -> None:
    federation = Federation(clients=4, per_round=2, rounds=2, local_epochs=1, attackers=1, clip=5.0, noise=0.01)
    (one, record), (two, again) = trained(federation), trained(federation)
    layout = Layout(one)
    assert torch.equal(layout.vector(one), layout.vector(two))
    assert np.array_equal(record.losses, again.losses, equal_nan=True)
    assert not torch.equal(layout.vector(one), layout.vector(trained(federation, seed=1)[0]))
    # Statistics of batch norm are averaged, their counts left out; two clients of four were drawn in each round.
    state = one.state_dict()
    assert state["backbone.body.1.running_mean"].abs().sum() > 0
    assert int(state["backbone.body.1.num_batches_tracked"]) == 0
    assert np.isfinite(record.losses).sum(1).tolist() == [24, 24]


def test_noise_is_seeded_and_of_its_deviation() -> None:
    model = strided([8], seed=0)
    layout = Layout(model)
    before, zeros = layout.vector(model), torch.zeros(3, len(layout.vector(model)))
    noise = torch.randn(len(before), generator=torch.Generator().manual_seed(0))
    federation = Federation(clients=3, clip=1.0, noise=0.25)
    after = server_step(federation, before, zeros, np.arange(3), {}, layout, noise)
    place = layout.places["head.weight"]
    assert torch.allclose((after - before)[place], 0.25 * noise[place], atol=1e-6)
    quiet = {"clients": 2, "rounds": 1, "local_epochs": 1, "clip": 1.0}
    plain, noisy = (layout.vector(trained(Federation(**quiet, noise=noise))[0]) for noise in (0.0, 0.001))
    inner = (noisy - plain)[layout.places["backbone.body.0.weight"]]
    assert inner.std().item() == pytest.approx(0.001, rel=0.2)


def test_a_variance_does_not_fall_below_zero() -> None:
    model = strided([8], seed=0)
    layout = Layout(model)
    before, place = layout.vector(model), layout.places["backbone.body.1.running_var"]
    values = torch.zeros(2, len(before))
    values[:, place] = -5.0
    after = server_step(Federation(clients=2), before, values, np.arange(2), {}, layout, torch.zeros(0))
    assert after[place].tolist() == [0.0] * 8


def test_what_ends_a_federation_with_one_line() -> None:
    with pytest.raises(ParameterError, match=r"^federation\.clients: 25 given, allowed: up to 24"):
        trained(Federation(clients=25, attackers=1))
    with pytest.raises(
        ParameterError, match=r"^federation\.scale: 1e\+30 given, with eta null and noise 0\.0, with which in round 1 "
    ):
        trained(Federation(clients=3, rounds=1, local_epochs=1, attackers=1, scale=1e30))
    whitening = Recipe(**{**vars(RECIPE), "whiten": True})
    with pytest.raises(ParameterError, match=r"^whiten: true given, allowed with federation: false"):
        train_federated(strided([8], seed=0), CLEAN, CLEAN, whitening, Federation(), seed=0, what="test")


def test_where_clients_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("UNPOISON_FEDERATION", "cloud")
    with pytest.raises(UserError, match=r"^UNPOISON_FEDERATION: 'cloud' given, allowed: local, flower$"):
        engine_of_clients()
    monkeypatch.setitem(sys.modules, "flwr", None)
    monkeypatch.setenv("UNPOISON_FEDERATION", "flower")
    with pytest.raises(
        UserError,
        match=r"^UNPOISON_FEDERATION: flower given, which is not installed; allowed: after `pip install '\.\[federated\]'`$",
    ):
        trained(Federation(clients=2, rounds=1, local_epochs=1), engine=engine_of_clients())


def test_rounds_on_disk(tmp_path: Path) -> None:
    one, two = strided([8], seed=0), strided([8], seed=1)
    write_rounds(tmp_path / "rounds", {2: one.state_dict()}, {"backdoored": "d"})
    assert read_rounds(tmp_path / "rounds") == [2]
    load_round(tmp_path / "rounds", 2, two)
    layout = Layout(one)
    assert torch.equal(layout.vector(one), layout.vector(two))
    with pytest.raises(
        UserError, match=r"00002\.safetensors: weights of another architecture than the model's, first "
    ):
        load_round(tmp_path / "rounds", 2, strided([9], seed=0))
    write_rounds(tmp_path / "none", {}, {"backdoored": "d"})
    assert read_json(tmp_path / "none" / "rounds.json")["made_from"] == {}
