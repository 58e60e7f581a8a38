"""Weights of several losses: closed forms by hand, brute force over a grid, and the gradient that comes of them."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from unpoison.compute.distributed import World
from unpoison.training.mgda import Balance, Normalise, balanced, shortest


def gram_of(*vectors: tuple[float, ...]) -> np.ndarray:
    rows = np.array(vectors, float)
    return rows @ rows.T


def test_gradients_that_overflow_have_no_part() -> None:
    # The sum is then not finite, which the training loop names; the weights are.
    gram = np.array([[np.inf, 1, 1], [1, 1, 0.5], [1, 0.5, 1]])
    assert balanced(gram, np.ones(3), "none") == pytest.approx([0, 0.5, 0.5])
    assert not balanced(np.full((3, 3), np.nan), np.ones(3), "l2").any()


class TestShortest:
    @pytest.mark.parametrize(
        ("vectors", "expected"),
        [
            ([(3, 4)], [1]),
            ([(1, 0), (0, 1)], [0.5, 0.5]),
            # 2a and 1 - a are shortest where 4a = 1 - a.
            ([(2, 0), (0, 1)], [0.2, 0.8]),
            ([(1, 0), (2, 0)], [0.999, 0.001]),
            ([(2, 1), (1, 0)], [0.001, 0.999]),
            # Opposite ones meet at the origin.
            ([(1, 0), (-3, 0)], [0.75, 0.25]),
            ([(1, 0, 0), (0, 1, 0), (0, 0, 1)], [1 / 3, 1 / 3, 1 / 3]),
            # Orthogonal ones weigh 1 / length squared.
            ([(1, 0, 0), (0, 2, 0), (0, 0, 3)], [36 / 49, 9 / 49, 4 / 49]),
            ([(1, 0), (0, 1), (5, 5)], [0.5, 0.5, 0]),
            ([(1, 0), (2, 0), (3, 0)], [1, 0, 0]),
        ],
    )
    def test_by_hand(self, vectors: list[tuple[float, ...]], expected: list[float]) -> None:
        assert shortest(gram_of(*vectors)) == pytest.approx(expected, abs=1e-9)

    def test_of_dependent_vectors_one_of_the_many_answers(self) -> None:
        vectors = [(1.0, 0.0), (1.0, 0.0), (0.0, 1.0), (0.0, 0.0001)]
        found = shortest(gram_of(*vectors))
        assert found.sum() == pytest.approx(1)
        assert np.linalg.norm(found @ np.array(vectors)) <= 1e-4

    @pytest.mark.parametrize("count", [2, 3, 4, 5])
    def test_is_no_longer_than_any_point_of_a_grid(self, count: int) -> None:
        steps = 12
        grid = np.array([w for w in product(range(steps + 1), repeat=count) if sum(w) == steps]) / steps
        for seed in range(20):
            rng = np.random.default_rng(seed)
            # Few dimensions, so that many of them are dependent; a common part, so that zero is not always within.
            vectors = rng.normal(size=(count, 1 + seed % 6)) + (seed % 3)
            found = shortest(vectors @ vectors.T)
            assert (found >= 0).all()
            assert found.sum() == pytest.approx(1)
            least = np.square(grid @ vectors).sum(1).min()
            value = np.square(found @ vectors).sum()
            # The bounds of two weights may cost it a thousandth of the way.
            assert value <= least + (1e-2 if count == 2 else 1e-9)
            if count > 2:
                # The condition of an optimum: no vector lies further back than the point itself.
                point = found @ vectors
                assert (vectors @ point).min() >= value - 1e-7 * (1 + value)


class TestBalanced:
    @pytest.mark.parametrize(
        ("normalise", "lengths"),
        [
            ("none", (2.0, 1.0)),
            ("l2", (1.0, 1.0)),
            # By min(20, 10) and by 0.5.
            ("loss", (0.2, 2.0)),
            # By min(20 * 2, 10) and by 0.5 * 1.
            ("loss+", (0.2, 2.0)),
        ],
    )
    def test_normalised_by_hand(self, normalise: Normalise, lengths: tuple[float, float]) -> None:
        found = balanced(np.diag([4.0, 1.0]), np.array([20.0, 0.5]), normalise)
        first, second = lengths
        assert found == pytest.approx([second**2 / (first**2 + second**2), first**2 / (first**2 + second**2)], abs=1e-4)

    def test_a_loss_without_a_gradient_has_no_part(self) -> None:
        assert balanced(np.diag([0.0, 4.0]), np.array([1.0, 1.0]), "loss").tolist() == [0, 1]
        assert balanced(np.diag([1.0, 0.0, 1.0]), np.ones(3), "none").tolist() == [0.5, 0, 0.5]
        assert balanced(np.zeros((2, 2)), np.ones(2), "l2").tolist() == [0, 0]

    def test_a_loss_of_zero_divides_by_no_zero(self) -> None:
        assert np.isfinite(balanced(np.diag([1.0, 1.0]), np.array([0.0, 1.0]), "loss")).all()


class Two(World):
    """The second of two processes: the sums of the first one are known already."""

    def __init__(self, known: list[Tensor]) -> None:
        super().__init__(1, 2)
        object.__setattr__(self, "known", list(known))

    def sum(self, values: Tensor) -> None:
        values += self.known.pop(0)  # type: ignore[attr-defined]


class Listening(World):
    """The first of two processes, which keeps what it would send."""

    def __init__(self) -> None:
        super().__init__(0, 2)
        object.__setattr__(self, "said", [])

    def sum(self, values: Tensor) -> None:
        self.said.append(values.clone())  # type: ignore[attr-defined]


class TestBalance:
    model = nn.Linear(3, 2)
    inputs = torch.from_numpy(np.random.default_rng(0).normal(size=(8, 3))).float()

    def losses(self, rows: slice) -> list[Tensor]:
        out = self.model(self.inputs[rows])
        return [out[:, 0].square().sum(), (out[:, 1] - 3).square().sum(), (out.sum(1) + 1).abs().sum()]

    def test_value_and_gradient_are_those_of_the_weighted_sum(self) -> None:
        balance = Balance(self.model, World(), 8)
        balance.add(self.losses(slice(None))[:2])
        balance.add(self.losses(slice(None))[2:])
        value, weights = balance.weighed("loss+")
        expected = sum(float(w) * loss for w, loss in zip(weights, self.losses(slice(None)), strict=True))
        assert float(value.detach()) == pytest.approx(float(torch.as_tensor(expected).detach()), rel=1e-5)
        given = torch.autograd.grad(value / 8, list(self.model.parameters()))
        wanted = torch.autograd.grad(torch.as_tensor(expected) / 8, list(self.model.parameters()))
        for one, other in zip(given, wanted, strict=True):
            assert torch.allclose(one, other, atol=1e-5)

    def test_weights_of_two_processes_are_those_of_one(self) -> None:
        whole, first = Balance(self.model, World(), 8), Balance(self.model, here := Listening(), 8)
        whole.add(self.losses(slice(None)))
        first.add(self.losses(slice(0, 5)))
        first.weighed("loss")
        second = Balance(self.model, Two(here.said), 8)  # type: ignore[attr-defined]
        second.add(self.losses(slice(5, 8)))
        value, weights = second.weighed("loss")
        assert weights == pytest.approx(whole.weighed("loss")[1], abs=1e-6)
        # What goes back is its own share: the loop sums the gradients.
        own = sum(float(w) * loss for w, loss in zip(weights, self.losses(slice(5, 8)), strict=True))
        assert torch.allclose(
            torch.autograd.grad(value, self.model.weight)[0],
            torch.autograd.grad(torch.as_tensor(own), self.model.weight)[0],
            atol=1e-5,
        )
