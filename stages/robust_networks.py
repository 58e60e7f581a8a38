"""The networks of models that are trained beside the victim: the robust methods', the student's and its teacher's.

Apart from `training`: the victim's stage runs nothing of this, and a change here does not train him again.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from common import BACKDOORED

import numpy as np
import torch

from parameters import PARAMS, Params, section
from received import victim_network_of
from teacher import teacher_of
from training import fresh_model, network_of
from unpoison import models
from unpoison.core.errors import UserError, file_of, keys_of
from unpoison.data.imageset import ImageSet


def robust_network_of(params: Params) -> dict[str, Any]:
    """The network of robust methods, as `models.build` takes it: the victim's, with the changes of `robust.model`, or another."""
    return _changed(params, "robust.model", network_of(params))


def student_network_of(params: Params) -> dict[str, Any]:
    """The student's network: its teacher's, with the changes of `distill.model`, or another."""
    return _changed(params, "distill.model", teacher_network_of(params))


def teacher_network_of(params: Params) -> dict[str, Any]:
    """The teacher's network, without the pretrained weights that its training may have begun with."""
    teacher = teacher_of(params)
    if teacher == BACKDOORED:
        return {key: value for key, value in victim_network_of(params).items() if key != "pretrained"}
    about = models.read_about(teacher).network
    with file_of(teacher / models.DESCRIPTION), keys_of("network"):
        return {"name": about.name, **models.network_arguments(about.name, about.arguments)}


def load_teacher(folder: Path, data: ImageSet) -> models.Classifier:
    """The teacher, for images of the size that its network was built for or of another one that it takes.

    Args:
        folder: the teacher's.
        data: variations, or images like them.

    Raises:
        UserError: a model for other classes or channels, or a network that cannot take the images; no readable model.
    """
    about, path = models.read_about(folder).network, folder / models.DESCRIPTION
    if about.channels != data.channels:
        raise UserError(f"{path}: a model for images of {about.channels} channels, the data have {data.channels}")
    own = (about.image_size[0], about.image_size[1])
    like_own = np.broadcast_to(np.zeros((), np.uint8), (1, *own, data.channels))
    model = models.load(folder, ImageSet(like_own, np.zeros(1, np.int64), data.classes))
    if own != data.image_size:
        try:
            with torch.no_grad():
                model(torch.zeros(1, data.channels, *data.image_size))
        except models.MISFITS as error:
            sizes = [f"{height}x{width} px" for height, width in (own, data.image_size)]
            raise UserError(
                f"{path}: a model for images of {sizes[0]}, whose network cannot take the data's of "
                f"{sizes[1]}: {type(error).__name__}: {str(error)[:300]}"
            ) from None
    return model


def fresh_student(params: Params, teacher: models.Classifier, data: ImageSet, *, seed: int) -> models.Classifier:
    """The student with fresh weights. Where its network is the teacher's, it normalises images as that does."""
    network = student_network_of(params)
    if network == teacher_network_of(params):
        network |= {key: teacher.description[key] for key in ("mean", "std")}
    return fresh_model(network, data, seed=seed)


def _changed(params: Params, place: str, otherwise: Mapping[str, Any]) -> dict[str, Any]:
    """The network of a section; where it names none, `otherwise` with its values in place."""
    # A key that is null is as good as absent, as in `model`.
    network = {key: value for key, value in section(params, place).items() if value is not None}
    if "name" not in network:
        network = {**otherwise, **network}
    name = network.pop("name")
    with file_of(PARAMS), keys_of(place):
        return {"name": name, **models.network_arguments(name, network)}
