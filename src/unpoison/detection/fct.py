"""FCT, feature consistency towards transformations (Chen et al., "Effective Backdoor Defense by Exploiting Sensitivity of
Poisoned Samples", NeurIPS 2022).

Turn and shift an image: the features of a poisoned one, whose trigger moves or leaves the frame, change more.

Published code: https://github.com/SCLBD/Effective_backdoor_defense, and a port that skips the training before the tuning:
https://github.com/HanxunH/CognitiveDistillation/blob/6aba6f9/detection/fct.py
"""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import torch
from torch import Tensor

from ..compute.device import autocast, pick_device, to_float
from ..compute.finite import check_finite
from ..compute.inference import BATCH, passes
from ..core.arrays import Images, IntArray, Pixels
from ..core.hyperparameters import Count, Fraction, Positive, Whole
from ..core.seeding import uniform
from ..data.ranks import order
from ..data.scores import Scores
from ..models.classifier import Classifier
from ..training.loop import fit
from ..training.recipe import Recipe
from .detector import Detector, Suspect

SHIFT = 0.2
"""Most that an image is shifted by along each axis, as a share of its side."""


def score(
    suspect: Suspect,
    *,
    seed: int = 0,
    epochs: Whole = 10,
    batch_size: Count = 128,
    lr: Positive = 0.01,
    removed: Fraction = 0.05,
) -> Scores:
    """Mean squared difference of the features of an image and of the same image turned and shifted.

    Args:
        seed: seed for angles and shifts, and for the order of the images in tuning.
        epochs: passes of tuning features apart by class on the suspect set before; 10 in both published codes. 0: the
            features of the model as it is.
        batch_size: images per step of the tuning.
        lr: learning rate of the tuning, by SGD with momentum 0.9 and weight decay 0.0005.
        removed: share of all samples, of the largest differences, that the rule flags; 0.05 in the paper.
    """
    model, data = suspect.model, suspect.data
    if epochs:
        model = deepcopy(model)
        recipe = Recipe(epochs=epochs, batch_size=batch_size, lr=lr, weight_decay=5e-4, schedule="constant")
        fit(model, data, recipe, seed=seed, what="fct", loss=_similarity)
    plain = np.concatenate([features for _, features in passes(model, data, what="fct")]) if epochs else None
    values = np.empty(len(data), np.float32)
    model.eval()
    for start in range(0, len(data), BATCH):
        index = np.arange(start, min(start + BATCH, len(data)))
        before = suspect.features.penultimate[index] if plain is None else plain[index]
        check_finite("fct", before, "features")
        values[index] = consistency(model, before, turned(data.gather(index), index, seed))
    flagged = np.zeros(len(data), bool)
    flagged[order(values)[: int(removed * len(data))]] = True
    # A pass of tuning takes three: forward, backward to the input and to the weights.
    cost = 1 + (3 * epochs + 1 if epochs else 0)
    return Scores(values, forward_passes=cost, flagged=flagged, rule=f"the {removed:.0%} with the largest differences")


def _similarity(model: Classifier, images: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Logits, and for every sample the mean cosine of the batch's class means (section 3.2), those with themselves left out."""
    features = model.features(images).float()
    present, which = labels.unique(return_inverse=True)
    # Sums by class: normalised, they are the means normalised.
    sums = torch.zeros(len(present), features.shape[1], device=features.device).index_add(0, which, features)
    centres = torch.nn.functional.normalize(sums, dim=1)
    cosines = centres @ centres.T
    loss = (cosines.sum() - cosines.diagonal().sum()) / cosines.numel()
    return model.head(features), loss.expand(len(images))


def consistency(model: Classifier, features: Pixels, transformed: Images) -> Pixels:
    """Mean over features of the squared difference: features [n, d] of the images, which come transformed, uint8 [n, h, w, c]."""
    device = pick_device()
    model.to(device=device, memory_format=torch.channels_last)  # type: ignore[call-overload]
    images = to_float(torch.from_numpy(transformed).permute(0, 3, 1, 2), device)
    with torch.inference_mode(), autocast(device):
        after = model.features(images).float().cpu().numpy()
    check_finite("fct", after, "features of transformed images")
    difference: Pixels = ((features - after) ** 2).mean(1)
    return difference


def turned(images: Images, samples: IntArray, seed: int) -> Images:
    """Images turned by up to 180 degrees either way, then shifted by whole pixels; what comes from outside is black.

    Args:
        images: images, uint8 [n, h, w, c].
        samples: their numbers in the data, which name the draws.
        seed: seed of the draws.
    """
    count, height, width, _ = images.shape
    draws = 2 * uniform(seed, "fct/transform", samples, 3) - 1
    angle, down, right = (
        np.pi * draws[:, 0],
        np.rint(draws[:, 1] * SHIFT * height),
        np.rint(draws[:, 2] * SHIFT * width),
    )
    # Where each pixel of the result comes from: shifted back, and turned back about the centre, to the nearest pixel.
    rows, columns = np.mgrid[:height, :width].astype(np.float64)
    y, x = rows[None] - down[:, None, None], columns[None] - right[:, None, None]
    outside = (y < 0) | (y > height - 1) | (x < 0) | (x > width - 1)
    y, x = y - (height - 1) / 2, x - (width - 1) / 2
    cosine, sine = np.cos(angle)[:, None, None], np.sin(angle)[:, None, None]
    from_row = np.rint(cosine * y + sine * x + (height - 1) / 2).astype(int)
    from_column = np.rint(cosine * x - sine * y + (width - 1) / 2).astype(int)
    outside |= (from_row < 0) | (from_row >= height) | (from_column < 0) | (from_column >= width)
    from_row[outside] = from_column[outside] = 0
    result: Images = images[np.arange(count)[:, None, None], from_row, from_column]
    result[outside] = 0
    return result


DETECTOR = Detector(score=score)
