"""Grad-CAM: where in an image the label hangs that a model gives it.

Selvaraju et al., "Grad-CAM: Visual Explanations from Deep Networks via Gradient-based Localization" (2017), section 3: the
channels of a feature map, each weighed by the mean gradient of the label's logit over it, are summed, and what is below 0 is
left out. The published figure takes the last convolutional layer. Here that is the last map with `side` positions a side or
more, of whatever network: a small one's last map may have four positions, which say nothing of where. BackdoorBench's script
of this name draws FullGrad.
"""

from __future__ import annotations

from typing import Annotated, Any

import numpy as np
import torch
import torch.nn.functional as F
from annotated_types import Ge, Le
from numpy.typing import NDArray
from torch import Tensor, nn

from ..compute.device import pick_device
from ..compute.finite import check_rows
from ..compute.inference import batches
from ..core.arrays import Images, IntArray
from ..core.errors import UserError
from ..core.hyperparameters import Count
from ..data.drawings import Drawing, Picture
from ..data.imageset import ImageSet
from ..models.classifier import Classifier
from ..purification.maps import LAST, recorded, stages_of
from ..reporting import figures
from ..reporting.escaping import spreadsheet, visible
from . import plots
from .figure import Figure, Scene, csv_of, file_name

Maps = NDArray[np.float32]
PASS = 64  # images of 32 px per pass with its gradient


def draw(scene: Scene, *, seed: int = 0, images: Annotated[int, Ge(1), Le(32)] = 6, side: Count = 4) -> Drawing:
    """A sheet for each model: test images and their maps, without and with the trigger where one is known.

    Args:
        seed: seed for the test images.
        images: test images that are drawn, each a column.
        side: positions that the feature map has along its shorter side, at least: the last such map is taken.
    """
    if scene.has_trigger:
        pairs = scene.pairs(images, seed, "grad_cam/images")
        kinds = {"clean": pairs.clean, "triggered": pairs.triggered}
        true, changed = pairs.true, (pairs.clean != pairs.triggered).any(3)
    else:
        sample = scene.sample(images, seed, "grad_cam/images")
        kinds, true, changed = {"clean": sample.gather(np.arange(len(sample)))}, sample.labels, None
    classes = scene.test.classes
    names = np.array(list(map(spreadsheet, classes)), object)
    pictures, tables = [], {}
    for name, model in scene.models.items():
        rows: dict[str, Images] = {}
        columns: dict[str, Any] = {"true": names[true]}
        given = []
        for kind, shown in kinds.items():
            heat, predicted = maps_of(model, ImageSet(shown, true, classes), side, name)
            rows |= {kind: shown, f"{kind}, map": plots.heated(shown, heat)}
            columns[f"{kind}_predicted"] = names[predicted]
            if changed is not None:
                columns[f"{kind}_on_trigger"] = share_on(heat, changed)
            given.append(predicted)
        if changed is not None:
            columns["trigger_area"] = changed.mean((1, 2))
        titles = [
            f"{_short(classes[label])}: " + " → ".join(_short(classes[one[n]]) for one in given)
            for n, label in enumerate(true)
        ]
        caption = f"{name}: maps for the label that the model gives"
        if changed is not None:
            on = [float(np.mean(columns[f"{kind}_on_trigger"])) for kind in kinds]
            caption += (
                f"; on the changed pixels, {changed.mean():.1%} of the image, lie {on[0]:.1%} of them without and "
            )
            caption += f"{on[1]:.1%} with the trigger"
        png = figures.contact_sheet(rows, titles)
        pictures.append(Picture(name=file_name(name), png=png, caption=caption, wide=True))
        tables[file_name(name)] = csv_of(columns)
    words = "Grad-CAM: bright is what speaks for the label that the model gives. Above each image: true label, and the label given"
    words += " without → with the trigger." if scene.has_trigger else "."
    return Drawing(caption=words, pictures=pictures, tables=tables)


def maps_of(model: Classifier, data: ImageSet, side: int, what: str) -> tuple[Maps, IntArray]:
    """Maps for the labels that a model gives, float32 [n, h, w] in [0, 1], and these labels, int64 [n].

    Raises:
        UserError: a network without a feature map of two positions or more; gradients that are not finite.
    """
    device = pick_device()
    model.to(device).eval()
    stage = stage_of(model, data.image_size, side, what)
    heats, labels = [], []
    for _, images in batches(data, PASS, device=device, what="grad_cam"):
        heat, predicted = grad_cam(model, images, stage)
        check_rows(heat, f"{what}: maps")
        heats.append(heat.cpu().numpy())
        labels.append(predicted.cpu().numpy())
    return np.concatenate(heats), np.concatenate(labels)


@torch.no_grad()
def stage_of(model: Classifier, image_size: tuple[int, int], side: int, what: str) -> str:
    """The name, as `recorded` has it, of the last map with `side` positions a side, or else of the largest one."""
    stages = stages_of(model, image_size, 100)
    if not stages:
        raise UserError(f"{what}: its last feature map has one position, allowed: a network that has somewhere to look")
    with recorded(model, stages) as maps:
        model(model.mean.expand(1, -1, *image_size))
    sides = {name: min(maps[name].shape[2:]) for name in stages}
    return next((name for name in reversed(stages) if sides[name] >= side), stages[0])


def grad_cam(model: Classifier, images: Tensor, stage: str, labels: Tensor | None = None) -> tuple[Tensor, Tensor]:
    """Maps float [n, h, w] of the images' size, each with a largest value of 1, or 0 throughout; and the labels, int64 [n].

    Args:
        model: classifier in evaluation mode, on the images' device.
        images: float [n, c, h, w] in [0, 1].
        stage: name of the map.
        labels: labels that the maps are for; None: those that the model gives.
    """
    backbone = model.backbone
    kept: list[Tensor] = []

    def cut(module: nn.Module, given: Any, out: Tensor) -> Tensor:
        # Nothing before it needs a gradient. A copy goes on, as an activation behind it may work in place.
        kept.append(out.detach().requires_grad_())
        return kept[-1].clone()

    module = backbone if stage == LAST else backbone.body.get_submodule(stage)
    hook = module.register_forward_hook(cut)
    try:
        with torch.enable_grad():
            logits = model(images)
    finally:
        hook.remove()
    chosen = logits.argmax(1) if labels is None else labels
    (back,) = torch.autograd.grad(logits.gather(1, chosen[:, None]).sum(), kept)
    raw, slopes = kept[0].detach(), back
    if stage == LAST:
        raw, slopes = backbone.spatial(raw), backbone.spatial(slopes)
    heat = (slopes.mean((2, 3), keepdim=True) * raw).sum(1, keepdim=True).clamp(min=0)
    heat = F.interpolate(heat, images.shape[2:], mode="bilinear", align_corners=False)[:, 0]
    largest = heat.amax((1, 2), keepdim=True)
    return torch.where(largest > 0, heat / largest.clamp(min=torch.finfo(heat.dtype).tiny), heat), chosen


def share_on(heat: Maps, mask: NDArray[np.bool_]) -> NDArray[np.float64]:
    """The share of each map [n, h, w] that lies on a mask's pixels, float64 [n]; 0 of an empty map."""
    wide = heat.astype(np.float64)
    share: NDArray[np.float64] = (wide * mask).sum((1, 2)) / np.maximum(wide.sum((1, 2)), 1e-12)
    return share


def _short(name: str) -> str:
    return visible(name)[:7]


FIGURE = Figure(draw=draw)
