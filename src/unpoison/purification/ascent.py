"""Guards for purifiers that raise a loss: unbounded, ascent ends in a network that knows nothing.

A bound ends the gradient of a loss that has risen far enough, and a watch on the trusted reserve says when the network as a
whole has lost too much. Either can be left out, which is what most published code does.
"""

from __future__ import annotations

import torch

from ..compute.device import autocast, pick_device
from ..compute.inference import BATCH, batches
from ..data.imageset import ImageSet
from ..models.classifier import Classifier


class Watch:
    """The accuracy on the trusted reserve, while a loss is raised.

    Attributes:
        start: accuracy of the network that the watch was made with; 0, unmeasured, where nothing is watched.
    """

    def __init__(self, model: Classifier, reserve: ImageSet, allowed_drop: float | None) -> None:
        """Measure the accuracy to start from.

        Args:
            model: the network before the ascent, on the device.
            reserve: trusted, labelled images.
            allowed_drop: the accuracy that may be lost, a share of the images; None for all of it.
        """
        self.reserve, self.allowed_drop = reserve, allowed_drop
        self.start = 0.0
        if allowed_drop is not None:
            self.start = accuracy_on(model, reserve)
            self._keep(model)

    def collapsed(self, model: Classifier) -> bool:
        """Whether more accuracy is lost than allowed. One pass over the reserve, so once per epoch, not per step."""
        if self.allowed_drop is None:
            return False
        # Half an image is not lost: 0.9 - 0.1 is not 0.8.
        if accuracy_on(model, self.reserve) < self.start - self.allowed_drop - 0.5 / len(self.reserve):
            return True
        self._keep(model)
        return False

    @torch.no_grad()
    def restore(self, model: Classifier) -> None:
        """Put the weights and statistics of the last look that found no collapse back into `model`, in place."""
        if self.allowed_drop is not None:
            model.load_state_dict(self.kept)

    def _keep(self, model: Classifier) -> None:
        self.kept = {name: value.detach().clone() for name, value in model.state_dict().items()}


@torch.no_grad()
def accuracy_on(model: Classifier, data: ImageSet) -> float:
    """Share of labelled images that the network, on the device, is right about in evaluation mode; its mode is kept."""
    device, training = pick_device(), model.training
    labels, correct = torch.from_numpy(data.labels).to(device), torch.zeros((), device=device)
    model.eval()
    for index, images in batches(data, BATCH, device=device, what="accuracy"):
        with autocast(device):
            predicted = model(images).argmax(1)
        correct += (predicted == labels[torch.from_numpy(index).to(device)]).sum()
    model.train(training)
    return correct.item() / len(data)
