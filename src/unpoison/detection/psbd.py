"""PSBD (Li et al., "PSBD: Prediction Shift Uncertainty Unlocks Backdoor Detection", CVPR 2025).

With dropout in an already trained network clean predictions shift to other classes, and those of poisoned images stay.

Published code: https://github.com/WL-619/PSBD
"""

from __future__ import annotations

import operator
from typing import Annotated

import numpy as np
import torch
from annotated_types import Gt, Lt
from torch import Tensor, fx, nn

from ..compute.device import autocast, pick_device
from ..compute.finite import check_finite
from ..compute.inference import batches, frozen
from ..core.arrays import IntArray, Pixels
from ..core.errors import ParameterError
from ..core.hyperparameters import Count, Fraction
from ..core.seeding import derive, numpy_rng
from ..data.features import Features
from ..data.imageset import ImageSet
from ..data.scores import Scores
from ..models.classifier import Classifier
from .detector import Detector, Suspect

BATCH = 256  # images of 32 px; masks are drawn per batch, so another size means other masks
RATES = tuple(tenth / 10 for tenth in range(1, 10))
"""Dropout rates that are tried."""
SHIFTED = 0.8
"""Share of trusted images whose prediction has to shift at a rate that may be taken."""
LEAST = 20
"""Fewest trusted images that shares and quantiles are of."""
Rate = Annotated[float, Gt(0), Lt(1)]


def score(
    suspect: Suspect,
    *,
    seed: int = 0,
    passes: Count = 3,
    rate: Rate | None = None,
    quantile: Fraction = 0.25,
) -> Scores:
    """Minus the fall in the probability of a sample's own prediction under dropout: poison falls least.

    Args:
        seed: seed for the dropout's masks and for the training samples that the rate is chosen by.
        passes: number of passes with dropout that probabilities are averaged over.
        rate: share of activations that are dropped; null: of those at which the predictions of 80 % of the trusted images
            shift, the one with the largest difference to the training set's share, as in the paper; without such a rate,
            the one that shifts most.
        quantile: quantile of the trusted images' falls below which the rule flags.

    The labels of trusted images are not used. Dropout stands where two branches are added, as in the paper; in a network
    without any, behind each activation, which is this project's.
    """
    if len(suspect.reserve) < LEAST:
        raise ParameterError(
            f"psbd: {len(suspect.reserve)} images given, allowed: at least {LEAST} in the trusted reserve"
        )
    device = pick_device()
    network = _Dropping(suspect.model, device, seed)
    chosen, tried = (rate, 0.0) if rate is not None else _choose(network, suspect, seed)
    falls = _falls(network, suspect.data, suspect.features, chosen, passes)
    trusted = _falls(network, suspect.reserve, suspect.reserve_features, chosen, passes)
    rule = f"a fall below the {quantile:.0%} quantile of {len(trusted)} trusted images, at a dropout rate of {chosen:g}"
    flagged = falls < np.quantile(trusted, quantile)
    # The pass without dropout is that of the features; then those with it, and those that chose the rate.
    return Scores(-falls, forward_passes=1 + passes + tried, flagged=flagged, rule=rule)


class _Dropping:
    """A frozen classifier with dropout, images to probabilities.

    Raises:
        ParameterError: a network that cannot be traced.
    """

    def __init__(self, model: Classifier, device: torch.device, seed: int) -> None:
        if not model.traceable:
            name = model.description["name"]
            raise ParameterError(f"psbd: network {name} given, allowed: networks that torch.fx can trace")
        self.device, self.seed, self.rate = device, seed, 0.0
        self.generator = torch.Generator(device)
        self.network = self._with_dropout(frozen(model, device))

    def _with_dropout(self, traced: nn.Module) -> fx.GraphModule:
        assert isinstance(traced, fx.GraphModule)
        graph, named = traced.graph, dict(traced.named_modules())
        added = [node for node in graph.nodes if _adds_branches(node)]
        activations = [
            n for n in graph.nodes if n.op == "call_module" and isinstance(named[n.target], nn.ReLU | nn.GELU | nn.SiLU)
        ]
        for node in added or activations:
            with graph.inserting_after(node):
                dropped = graph.call_function(self._drop, (node,))
            # Everything but the dropout itself now reads the dropped value.
            node.replace_all_uses_with(dropped, delete_user_cb=lambda user, own=dropped: user is not own)
        return fx.GraphModule(traced, graph)

    def _drop(self, values: Tensor) -> Tensor:
        if not self.rate:
            return values
        kept = torch.empty_like(values).bernoulli_(1 - self.rate, generator=self.generator)
        return values * kept.div_(1 - self.rate)

    @torch.inference_mode()
    def probabilities(self, images: Tensor, rate: float, *key: int) -> Pixels:
        """Probabilities under one mask for each image, float32 [n, classes]; `key` names the draw."""
        self.rate = rate
        self.generator.manual_seed(derive(self.seed, "psbd/masks", *key))
        with autocast(self.device):
            logits = self.network(images).float()
        rows: Pixels = logits.softmax(1).cpu().numpy()
        check_finite("psbd", rows, "predictions")
        return rows


def _adds_branches(node: fx.Node) -> bool:
    """Whether a node adds two computed values, as the end of a residual block does."""
    adds = node.op == "call_function" and node.target in (operator.add, operator.iadd, torch.add)
    branches = [argument for argument in node.args if isinstance(argument, fx.Node) and argument.op != "get_attr"]
    return adds and len(branches) == 2


def _falls(network: _Dropping, data: ImageSet, features: Features, rate: float, passes: int) -> Pixels:
    """How far the probability of each image's own prediction falls under dropout, a mean over passes: float32 [n]."""
    falls = np.empty(len(data), np.float32)
    for index, images in batches(data, BATCH, device=network.device, what="psbd"):
        sure = torch.from_numpy(features.logits[index]).float().softmax(1).numpy()
        own = np.arange(len(index)), sure.argmax(1)
        dropped = [network.probabilities(images, rate, int(index[0]), number)[own] for number in range(passes)]
        falls[index] = sure[own] - np.mean(dropped, 0)
    return falls


def _choose(network: _Dropping, suspect: Suspect, seed: int) -> tuple[float, float]:
    """The dropout rate by the paper's criterion, and the passes per training sample that the choice took."""
    count = min(len(suspect.reserve), len(suspect.data))
    index = np.sort(numpy_rng(seed, "psbd/rate").permutation(len(suspect.data))[:count])
    shares = []
    for rate in RATES:
        trusted = _shifted(network, suspect.reserve, suspect.reserve_predicted, rate)
        shares.append(
            (trusted, trusted - _shifted(network, suspect.data.subset(index), suspect.predicted[index], rate))
        )
    enough = [place for place, (trusted, _) in enumerate(shares) if trusted >= SHIFTED]
    best = (
        max(enough, key=lambda place: shares[place][1])
        if enough
        else max(range(len(RATES)), key=lambda p: shares[p][0])
    )
    return RATES[best], len(RATES) * (len(suspect.reserve) + count) / len(suspect.data)


def _shifted(network: _Dropping, data: ImageSet, labels: IntArray, rate: float) -> float:
    """Share of the images whose largest probability is another class's under dropout."""
    shifted = 0
    for index, images in batches(data, BATCH, device=network.device, what="psbd, rate"):
        shifted += int((network.probabilities(images, rate, int(index[0])).argmax(1) != labels[index]).sum())
    return shifted / len(data)


def _needs_trusted(**own: object) -> int:
    return LEAST


DETECTOR = Detector(score=score, needs_trusted=_needs_trusted)
