"""Differentially private training: DP-SGD (Abadi et al., "Deep Learning with Differential Privacy", CCS 2016) and what it spends.

Every step draws its batch anew, each sample with the same probability, clips each sample's gradient, and adds Gaussian noise
(algorithm 1). What that spends is the Rényi accountant's of Opacus (Mironov, Talwar and Zhang, "Rényi Differential Privacy of the
Sampled Gaussian Mechanism", 2019), an extra that nothing here imports before it is asked for. The steps are this project's
(`shaping`): Opacus wraps an optimiser and a loader of torch, where the loop has its own, which resume and are the same on every
device.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Annotated, Any

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Generator, Tensor

from ..core.errors import ParameterError
from ..core.hyperparameters import Positive, check
from .plan import split
from .recipe import Recipe
from .shaping import Shaped

QUIETEST, NOISIEST = 1e-3, 100.0
"""Bounds of the noise: below, epsilon is in the hundred thousands in a single step; above, a step is noise."""
Multiplier = Annotated[float, Ge(QUIETEST), Le(NOISIEST)]
Probability = Annotated[float, Gt(0), Lt(1)]


@dataclass(frozen=True, kw_only=True)
class Privacy:
    """How private a training is: its noise, or the budget that the noise follows from.

    Attributes:
        noise: noise multiplier, the deviation of the noise on a batch's sum of gradients in units of `clip`.
        epsilon: budget that all steps together may spend, in the place of `noise`.
        delta: probability with which epsilon may be exceeded; None: the largest power of ten up to 1 over the number of samples.
        clip: greatest Euclidean length of a sample's gradient.
    """

    noise: Multiplier | None = None
    epsilon: Positive | None = None
    delta: Probability | None = None
    clip: Positive = 1.0


@dataclass(frozen=True, kw_only=True)
class PrivateRecipe(Recipe):
    """A recipe that is carried out by DP-SGD. `batch_size` is the number of samples that a step draws on average.

    Attributes:
        privacy: noise or budget.
    """

    privacy: Privacy


def privacy_of(values: Mapping[str, Any]) -> Privacy:
    """The privacy that a block of settings stands for; null leaves a setting at its default.

    Raises:
        ParameterError: an unknown key, a value of another type or out of range, both of noise and epsilon or neither.
    """
    given = {key: value for key, value in values.items() if value is not None}
    privacy = Privacy(**check(given, Privacy))
    if (privacy.noise is None) == (privacy.epsilon is None):
        if privacy.noise is None:
            raise ParameterError("noise: null given, allowed: a noise multiplier, or in its place epsilon, a budget")
        raise ParameterError(f"noise: {privacy.noise} given, allowed beside epsilon {privacy.epsilon}: null")
    return privacy


def private(recipe: Recipe, privacy: Privacy) -> PrivateRecipe:
    """The recipe, carried out in private.

    Raises:
        ParameterError: what looks at samples outside of the steps that are accounted for.
    """
    if recipe.whiten:
        raise ParameterError(
            "whiten: true given, allowed with privacy: false, as its filters are made from the images themselves"
        )
    if recipe.sam:
        raise ParameterError(
            f"sam: {recipe.sam} given, allowed with privacy: 0, as it takes a second look at each batch"
        )
    return PrivateRecipe(**vars(recipe), privacy=privacy)


def steps_of(recipe: Recipe, count: int) -> int:
    """Steps of a training on `count` samples, in one process."""
    return recipe.epochs * len(split(torch.arange(count), recipe.batch_size, drop_last=recipe.drop_last))


def check_installed() -> None:
    """Raises ParameterError where Opacus is not installed."""
    if find_spec("opacus") is None:
        raise ParameterError(
            "privacy: given, for which Opacus is not installed; allowed: `pip install '.[privacy]'` first, or null"
        )


def default_delta(count: int) -> float:
    """The largest power of ten up to 1 / `count`: above that a training that gave one sample away would be called private."""
    return 10.0 ** -(len(str(count - 1)) if count > 1 else 1)


def epsilon_of(noise: float, *, rate: float, steps: int, delta: float) -> float:
    """Epsilon that a training spends, by Opacus' Rényi accountant and its orders.

    Args:
        noise: noise multiplier.
        rate: probability with which a step draws a sample, above 0 and up to 1.
        steps: number of steps.
        delta: probability with which epsilon may be exceeded.
    """
    check_installed()
    with _quiet():
        from opacus.accountants import RDPAccountant
        from opacus.accountants.analysis import rdp

        orders = RDPAccountant.DEFAULT_ALPHAS
        spent = rdp.compute_rdp(q=rate, noise_multiplier=noise, steps=steps, orders=orders)
        epsilon, _ = rdp.get_privacy_spent(orders=orders, rdp=spent, delta=delta)
    # At a delta near 1 the bound falls below what any mechanism spends.
    return max(0.0, float(epsilon))


def noise_of(epsilon: float, *, rate: float, steps: int, delta: float) -> float:
    """The noise multiplier with which a training spends `epsilon` or up to a thousandth less.

    Args:
        epsilon, rate, steps, delta: as of `epsilon_of`.

    Raises:
        ParameterError: a budget that no noise from `QUIETEST` to `NOISIEST` leads to.
    """
    least, most = (epsilon_of(noise, rate=rate, steps=steps, delta=delta) for noise in (NOISIEST, QUIETEST))
    if not least <= epsilon <= most:
        raise ParameterError(
            f"epsilon: {epsilon} given, allowed with delta {delta:g} and {steps} steps that draw a sample with probability "
            f"{rate:.3g}: {_up(least)} to {most:.3g}, which is noise from {NOISIEST:g} to {QUIETEST:g}"
        )
    with _quiet():
        from opacus.accountants.utils import get_noise_multiplier

        return float(
            get_noise_multiplier(
                target_epsilon=epsilon,
                target_delta=delta,
                sample_rate=rate,
                steps=steps,
                accountant="rdp",
                # An absolute distance, of which the default, 0.01, is a fifth of a budget of 0.05.
                epsilon_tolerance=epsilon / 1000,
            )
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Opacus' warning of an optimal order at the end of its list: the bound holds all the same."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _up(value: float) -> float:
    """Three digits, rounded up, so that what a message allows is allowed."""
    digits = 2 - math.floor(math.log10(value)) if value > 0 else 0
    return math.ceil(value * 10**digits) / 10**digits


class Private(Shaped):
    """DP-SGD: batches by independent draws (Poisson sampling), which the accountant assumes, and what they spend."""

    def __init__(self, recipe: PrivateRecipe, count: int, *, seed: int, what: str) -> None:
        """`count` is the number of samples in the set."""
        super().__init__(clip=recipe.privacy.clip, noise=recipe.privacy.noise or 0.0, seed=seed, what=what)
        self.privacy, self.expected, self.count = recipe.privacy, recipe.batch_size, count

    def check(self, steps: int) -> None:
        """Work out the noise, or what it spends. Raises ParameterError for a budget that nothing leads to, or no Opacus."""
        check_installed()
        self.spent = spending(self.privacy, batch_size=self.expected, count=self.count, steps=steps)
        self.noise = self.spent["noise"]

    def batches(
        self, epoch: int, count: int, generator: Generator, cut: Callable[[Tensor], list[Tensor]]
    ) -> list[Tensor]:
        """As many as the recipe has; each sample is in each with the same probability, so sizes differ, down to 0."""
        steps = len(cut(torch.arange(count)))
        rate = self.expected / count
        return [(torch.rand(count, generator=generator) < rate).nonzero().flatten() for _ in range(steps)]

    def divisor(self, total: int) -> int:
        """The number of samples that is drawn on average: the size of a batch would tell of one sample more."""
        return self.expected


def spending(privacy: Privacy, *, batch_size: int, count: int, steps: int) -> dict[str, float]:
    """`epsilon`, `delta`, `noise` and `clip` of a training.

    Args:
        privacy: noise or budget.
        batch_size: samples that a step draws on average.
        count: samples in the set.
        steps: number of steps.

    Raises:
        ParameterError: batches larger than the set; a budget that no noise leads to.
    """
    if batch_size > count:
        raise ParameterError(
            f"batch_size: {batch_size} given, allowed with privacy: up to the {count} training samples"
        )
    delta, rate = privacy.delta or default_delta(count), batch_size / count
    noise = privacy.noise
    if noise is None:
        assert privacy.epsilon is not None
        try:
            noise = noise_of(privacy.epsilon, rate=rate, steps=steps, delta=delta)
        except ParameterError as error:
            raise ParameterError(f"privacy.{error}") from None
    epsilon = epsilon_of(noise, rate=rate, steps=steps, delta=delta)
    return {"epsilon": epsilon, "delta": delta, "noise": noise, "clip": privacy.clip}
