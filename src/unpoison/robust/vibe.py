"""VIBE (Šabolić et al., "Seal Your Backdoor with Variational Defense", ICCV 2025).

A sample's true label is unknown; the label received depends on it. Features start as those of a training by contrast. In turn,
labels are found by optimal transport, which keeps the classes' sizes even, from what the network says of the image and how often
that class is labelled as this one was (E-step), and the network is trained to give these labels, and they to give those received
(M-step).

Published code: https://github.com/ivansabolic/VIBE/blob/0fa351d, of whose two forms this is the one where the label received
depends on the true one alone. Its features start as those of All4One after 1,000 epochs, here of SimCLR; before that it may leave
out a whole community of samples that lies apart from the others, which is not done here. It counts iterations, here epochs.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..compute.device import full_precision
from ..compute.distributed import World
from ..compute.inference import features_of
from ..core.hyperparameters import Epochs, Positive
from ..core.seeding import derive
from ..data.imageset import ImageSet
from ..models.classifier import Classifier
from ..training.contrastive import train_features
from ..training.hand import Hand, Loss, Objective
from ..training.loop import History, fit
from ..training.recipe import Recipe
from .robust import Keep, Robust, Share, keep_nothing

PRIOR_SCALE = 0.2
"""Factor of the classes' parameters in the logarithm of their shares. Published are 0.02 and a hundredfold learning rate for these
parameters alone: a tenfold factor at the common rate is the same steps of SGD."""
TOLERANCE, MOST = 1e-3, 1_000
"""Where the transport ends: the greatest deviation of a class's share from the one wanted, relative to it, or so many rounds."""


def train(
    make_model: Callable[[], Classifier],
    data: ImageSet,
    recipe: Recipe,
    keep: Keep = keep_nothing,
    *,
    seed: int = 0,
    extractor_epochs: Epochs = 100,
    temperature: Positive = 0.5,
    crop: Share = 0.2,
    concentration: Positive = 10.0,
    certainty: Positive = 25.0,
    every: Epochs = 5,
) -> tuple[Classifier, History]:
    """Train features by contrast, and then the network and the true labels in turn.

    The head that is returned is linear and without the classes' shares: the prototypes of the classes, scaled so that logits are of
    the size of those in training.

    Args:
        make_model: maker of the network, freshly initialised.
        data: the training set as received.
        recipe: recipe of both trainings (the second of SGD at 1e-3, batches of 256, about 154 epochs as published); the first has
            no augmentation but its views.
        keep: where the phases have their checkpoints.
        seed: seed for the order and the views of the images, and for the classes' first shares.
        extractor_epochs: passes of the training by contrast.
        temperature: what cosines are divided by in it.
        crop: least area of a view in it, as a share of the image's.
        concentration: factor on cosines with the prototypes (10 as published, 20 of a hundred classes or more).
        certainty: what the log likelihood counts in the transport, beside the entropy (25 as published).
        every: epochs after which labels are found anew (1,000 steps as published, about 5 epochs of CIFAR-10).

    Raises:
        ParameterError: divergence.
    """
    model = make_model()
    train_features(
        model,
        data,
        replace(recipe, epochs=extractor_epochs),
        seed=seed,
        what="vibe/extractor",
        temperature=temperature,
        crop=crop,
        checkpoints=keep("vibe/extractor"),
    )
    rows = torch.from_numpy(features_of(model, data, what="vibe").penultimate[np.arange(len(data))])
    head, labels = model.head, torch.from_numpy(data.labels)
    prototypes = Prototypes(class_means(rows, labels, len(data.classes)), concentration, derive(seed, "vibe/shares"))
    model.head = prototypes.to(next(model.parameters()).device)  # type: ignore[assignment]
    try:
        history = fit(
            model,
            data,
            replace(recipe, whiten=False),
            seed=seed,
            what="vibe/training",
            hand=_Latent(data, certainty, every),
            checkpoints=keep("vibe/training"),
        )
        rows = torch.from_numpy(features_of(model, data, what="vibe").penultimate[np.arange(len(data))])
    finally:
        model.head = head.to(next(model.parameters()).device)
    with torch.no_grad():
        # A common length of all features changes no label.
        model.head.weight.copy_(concentration * F.normalize(prototypes.true.detach(), dim=1) / rows.norm(dim=1).mean())
        model.head.bias.zero_()
    return model, history


class Prototypes(nn.Module):
    """A head: for features [n, d] the logarithms of the shares of the true labels, [n, classes] (section 3.2, von Mises-Fisher)."""

    def __init__(self, means: Tensor, concentration: float, seed: int) -> None:
        """A head whose prototypes of true labels, and of labels received, start as means [classes, d]."""
        super().__init__()
        self.true, self.received = nn.Parameter(means.clone()), nn.Parameter(means.clone())
        normal = torch.randn(len(means), generator=torch.Generator().manual_seed(seed))
        self.prior, self.concentration = nn.Parameter(0.1 * normal), concentration

    def forward(self, features: Tensor) -> Tensor:
        with full_precision(features.device):
            cosines = F.normalize(features.float(), dim=1) @ F.normalize(self.true, dim=1).T
        return F.log_softmax(self.concentration * cosines + self.log_shares(), dim=1)

    def log_shares(self) -> Tensor:
        """The logarithms of the classes' shares, [classes]."""
        return F.log_softmax(PRIOR_SCALE * self.prior, dim=0)

    def log_received(self) -> Tensor:
        """The logarithm of the share of each label received (columns) given the true one (rows), [classes, classes]."""
        with full_precision(self.true.device):
            cosines = F.normalize(self.true, dim=1) @ F.normalize(self.received, dim=1).T
        return F.log_softmax(self.concentration * cosines, dim=1)


def class_means(rows: Tensor, labels: Tensor, classes: int) -> Tensor:
    """The mean row of each label, [classes, d]; of a label that does not occur the mean of all."""
    return torch.stack(
        [rows[labels == label].mean(0) if (labels == label).any() else rows.mean(0) for label in range(classes)]
    )


def transported(scores: Tensor, log_shares: Tensor, certainty: float) -> Tensor:
    """Labels int64 [n] by entropic optimal transport (Cuturi, NeurIPS 2013; section 3.3): each sample has the same mass, classes
    have their shares.

    Args:
        scores: log likelihood of each sample and label, float [n, classes].
        log_shares: logarithms of the classes' shares, [classes].
        certainty: factor on the scores.
    """
    scores, log_shares = certainty * scores.double(), log_shares.double()
    samples = torch.full((len(scores),), -math.log(len(scores)), dtype=torch.float64, device=scores.device)
    for _ in range(MOST):
        columns = log_shares - (scores + samples[:, None]).logsumexp(0)
        samples = -math.log(len(scores)) - (scores + columns).logsumexp(1)
        found = (scores + columns + samples[:, None]).logsumexp(0)
        if (found - log_shares).abs().max() <= TOLERANCE:
            break
    labels: Tensor = (scores + columns).argmax(1)
    return labels


class _Latent(Hand):
    """The true labels, found anew every few epochs, and the loss that is the likelihood of both kinds."""

    def __init__(self, data: ImageSet, certainty: float, every: int) -> None:
        self.data, self.certainty, self.every = data, certainty, every
        self.labels = torch.from_numpy(data.labels).clone()

    def start(self, model: Classifier, here: World) -> None:
        self.model, self.here = model, here

    def start_epoch(self, epoch: int, epochs: int) -> None:
        if epoch % self.every:
            return
        # Statistics of batch norm are each process's own until now; all are to find the same labels.
        self.here.average_buffers(self.model)
        head = self.model.head
        assert isinstance(head, Prototypes)
        scores = torch.from_numpy(features_of(self.model, self.data, what="vibe").logits[np.arange(len(self.data))])
        self.model.train()
        with torch.no_grad():
            if epoch:
                # Before the first epoch the label received says nothing but what it did for the prototypes.
                scores = scores + head.log_received().cpu().T[torch.from_numpy(self.data.labels)]
            self.labels.copy_(transported(scores, head.log_shares().cpu(), self.certainty))

    def objective(self, plain: Loss, model: Classifier, images: Tensor, labels: Tensor, samples: Tensor) -> Objective:
        head = model.head
        assert isinstance(head, Prototypes)
        true = self.labels.to(samples.device)[samples]
        log_shares = model(images).float()
        losses = -log_shares.gather(1, true[:, None])[:, 0] - head.log_received()[true, labels]
        return Objective(log_shares, losses)

    def tensors(self) -> dict[str, Tensor]:
        return {"labels": self.labels}


ROBUST = Robust(train=train, inputs=("data",))
