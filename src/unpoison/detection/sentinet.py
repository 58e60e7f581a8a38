"""SentiNet (Chou et al., "SentiNet: Detecting Localized Universal Attacks Against Deep Learning Systems", 2020).

The region that a prediction hangs on is cut out and pasted over trusted images: a trigger's region carries its label with it,
and is small enough for noise in its place to leave these images as they are. A clean image's region does only one of the two.

Public implementations differ in the second half; this follows the paper's two figures and its envelope of clean points.
"""

from __future__ import annotations

from copy import deepcopy

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..compute.device import autocast, pick_device, to_float
from ..compute.finite import check_finite
from ..compute.inference import batches, frozen
from ..core.arrays import IntArray, Pixels
from ..core.errors import ParameterError
from ..core.hyperparameters import Count, Fraction, NonNegative
from ..core.seeding import numpy_rng
from ..data.imageset import ImageSet
from ..data.scores import Scores
from ..models.classifier import Classifier
from .detector import Detector, Suspect

PASS = 512  # pasted images of 32 px per forward pass
BINS = 10
"""Steps of confidence, of which each has a highest point in the envelope."""


def score(
    suspect: Suspect,
    *,
    seed: int = 0,
    overlays: Count = 100,
    trusted: Count = 100,
    region: Fraction = 0.85,
    margin: NonNegative = 0.1,
) -> Scores:
    """Share of trusted images that a sample's region takes to the sample's label, less what clean regions reach.

    Args:
        seed: seed for the trusted images and the noise.
        overlays: number of trusted images that regions are pasted over.
        trusted: number of other trusted images whose regions are the envelope, at most; at least 10.
        region: share of the class activation map's largest value from which a pixel belongs to the region; 0.85 in a public
            implementation.
        margin: how far above the envelope the rule flags.
    """
    if overlays + 10 > len(suspect.reserve):
        raise ParameterError(
            f"overlays: {overlays} given, allowed: 1 to {max(0, len(suspect.reserve) - 10)}, 10 fewer than the trusted reserve"
        )
    device = pick_device()
    tools = _Tools(suspect, overlays, region, seed, device)
    drawn = numpy_rng(seed, "sentinet/overlays").permutation(len(suspect.reserve))
    clean = suspect.reserve.subset(np.sort(drawn[overlays:][:trusted]))
    predicted = suspect.reserve_predicted[np.sort(drawn[overlays:][:trusted])]
    envelope = _envelope(*tools.measured(clean, predicted))
    fooled, confidence = tools.measured(suspect.data, suspect.predicted)
    values = (fooled - envelope(confidence)).astype(np.float32)
    rule = f"more than {margin:g} above the highest shares that regions of {len(clean)} trusted images reach"
    # A pass for the map and one back to it; each overlay with the region and with noise in its place.
    return Scores(values, forward_passes=2 + 2.0 * overlays, flagged=values > margin, rule=rule)


class _Tools:
    """The network, the trusted images that regions are pasted over, and the noise: the same ones for all samples."""

    def __init__(self, suspect: Suspect, overlays: int, region: float, seed: int, device: torch.device) -> None:
        self.model = deepcopy(suspect.model).to(device).eval().requires_grad_(False)
        self.network: nn.Module = frozen(suspect.model, device)
        self.region, self.device = region, device
        drawn = numpy_rng(seed, "sentinet/overlays").permutation(len(suspect.reserve))[:overlays]
        self.overlays = to_float(suspect.reserve.tensor(drawn), device)
        noise = numpy_rng(seed, "sentinet/noise").random(self.overlays.shape[1:], np.float32)
        self.noise = torch.from_numpy(noise).to(device)

    def measured(self, data: ImageSet, labels: IntArray) -> tuple[Pixels, Pixels]:
        """Share of overlays that get an image's label with its region, and their mean confidence with noise there: [n] each."""
        fooled, confidence = np.empty(len(data), np.float32), np.empty(len(data), np.float32)
        count = len(self.overlays)
        for index, images in batches(data, max(1, PASS // count), device=self.device, what="sentinet"):
            masks = regions(self.model, images, torch.from_numpy(labels[index]).to(self.device), self.region)
            # [b, 1, ...] with [1, overlays, ...]: every pair by broadcasting.
            mask, background = masks[:, None], self.overlays[None]
            pasted = background + mask * (images[:, None] - background)
            covered = background + mask * (self.noise - background)
            of_pasted, of_covered = (
                self._probabilities(both).view(len(index), count, -1) for both in (pasted, covered)
            )
            given = torch.from_numpy(labels[index]).to(self.device)[:, None]
            fooled[index] = (of_pasted.argmax(2) == given).float().mean(1).cpu().numpy()
            confidence[index] = of_covered.amax(2).mean(1).cpu().numpy()
        check_finite("sentinet", np.stack([fooled, confidence], 1), "predictions")
        return fooled, confidence

    @torch.inference_mode()
    def _probabilities(self, images: Tensor) -> Tensor:
        with autocast(self.device):
            logits = self.network(images.flatten(0, 1).contiguous(memory_format=torch.channels_last))
        return logits.float().softmax(1)


def regions(model: Classifier, images: Tensor, labels: Tensor, share: float) -> Tensor:
    """Masks of the pixels that a label hangs on, float [n, 1, h, w] of 0 and 1: Grad-CAM (Selvaraju et al. 2017).

    Args:
        model: classifier in evaluation mode.
        images: images, float [n, c, h, w] in [0, 1].
        labels: label of each, int64 [n].
        share: share of the largest value of a map from which a pixel belongs to the region.
    """
    with torch.enable_grad(), autocast(images.device):
        raw = model.backbone((images - model.mean) / model.std).detach().requires_grad_()
        logits = model.head(model.backbone.pool(raw))
        (back,) = torch.autograd.grad(logits.float().gather(1, labels[:, None]).sum(), raw)
    maps, gradients = model.backbone.spatial(raw.detach()).float(), model.backbone.spatial(back).float()
    # Channels weighed by their mean gradient; what speaks against the label does not count.
    heat = (gradients.mean((2, 3), keepdim=True) * maps).sum(1, keepdim=True).clamp_(min=0)
    heat = F.interpolate(heat, images.shape[2:], mode="bilinear", align_corners=False)
    largest = heat.amax((2, 3), keepdim=True)
    # Where nothing speaks for the label there is no region.
    return ((heat >= share * largest) & (largest > 0)).to(images.dtype)


def _envelope(fooled: Pixels, confidence: Pixels) -> np.poly1d:
    """The parabola through the highest clean points of each step of confidence (section 4.3 of the paper)."""
    steps = np.minimum((confidence * BINS).astype(int), BINS - 1)
    highest = [np.flatnonzero(steps == step)[np.argmax(fooled[steps == step])] for step in np.unique(steps)]
    # As many points as there are, up to the three that a parabola needs.
    return np.poly1d(np.polyfit(confidence[highest], fooled[highest], min(2, len(highest) - 1)))


def _needs_trusted(*, overlays: int = 100, **own: object) -> int:
    return overlays + 10


DETECTOR = Detector(score=score, needs_trusted=_needs_trusted, single_inputs=True)
