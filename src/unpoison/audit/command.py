"""`make audit`: from a checkpoint and a few images to a run of the pipeline's stages, and what it says."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import nn

from .. import models
from ..compute.device import pick_device
from ..compute.inference import frozen, logits_of
from ..core.errors import UserError
from ..core.files import open_file
from ..data.imageset import ImageSet
from ..data.store import open_split
from ..detection import DETECTORS as ALL_DETECTORS
from ..models.classifier import Classifier
from ..models.receiving import Wanted, receive
from ..reporting.audit import kind_of, near_chance, section_of
from ..reporting.escaping import say
from ..reporting.intervals import wilson
from ..sources.decode import DefectError, decode
from ..sources.folder import open_folder
from ..sources.source import Source
from ..sources.splits import SplitSettings, arrange
from ..workflow import committed, run_stages
from .scenario import DETECTORS, INSPECTORS, RESERVE, TEST_SHARE, overrides, purifiers_for

RECEIVED = Path("data/received")
"""Where models that were received lie, by the digests of their descriptions."""
BASE = Path("data/base")
USUAL = {
    "0 and 1": (0.0, 1.0),
    "0.5 and 0.25": (0.5, 0.25),
    "0.5 and 0.5": (0.5, 0.5),
    "ImageNet's": ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225)),
}
"""Means and standard deviations that models are often trained with."""


@dataclass(frozen=True, kw_only=True)
class Given:
    """The arguments of the command.

    Attributes:
        model: checkpoint or model folder.
        data: folder or archive of images in folders of classes.
        network: name and arguments; "": to be recognised.
        image_size: pixels per side; None: those of the first image, or of the model folder.
        mean, std: per channel; None: assumed.
        classes: names in the order of the head's outputs; (): that of the folders.
        trusted: folder or archive of trusted images; None: a part of `data`.
    """

    model: Path
    data: Path
    network: str = ""
    image_size: int | None = None
    mean: Sequence[float] | None = None
    std: Sequence[float] | None = None
    classes: tuple[str, ...] = ()
    trusted: Path | None = None


def audit(given: Given) -> str:
    """Run the stages on a checkpoint and images, in the repository's root; the verdict in Markdown.

    Raises:
        UserError: what cannot work, before anything runs; a stage that failed; an accuracy near chance, which allows no verdict.
    """
    source = open_folder(given.data)
    sizes = split_sizes(source, given.trusted is not None)
    folder = receive(given.model, wanted_of(given, source), RECEIVED)
    model, about = models.load(folder), models.read_about(folder)
    batch_norm = any(isinstance(module, nn.modules.batchnorm._BatchNorm) for module in model.modules())
    # A folder of this project says the size of the images that its model takes.
    side = about.network.image_size[0] if given.image_size is None and given.model.is_dir() else given.image_size
    changed = overrides(folder, given.data, image_size=side, batch_norm=batch_norm, trusted=given.trusted)
    _show_plan(given, model, about.made_by["received"], sizes, batch_norm)
    # First what says whether the model was understood at all: a minute or less.
    run_stages(changed, ["train_backdoored"])
    check_understood(model, open_split(BASE, "test"))
    run_stages(changed, [])
    with open_file(Path("reports/summary.md")) as file:
        verdict = section_of(file.read().decode("utf-8"))
    if not verdict:
        raise UserError("reports/summary.md: no verdict in it, allowed: the summary of this run; run `make report`")
    return verdict


def wanted_of(given: Given, source: Source) -> Wanted:
    """What the user says of his checkpoint; the size of the images is that of the first where he says none."""
    size: tuple[int, int] | None = None
    if given.image_size is not None:
        size = (given.image_size, given.image_size)
    elif not given.model.is_dir():
        size = _first_size(source)
    return Wanted(source.classes, size, given.network, given.mean, given.std, given.classes)


def _first_size(source: Source) -> tuple[int, int]:
    """Height and width of the first image."""
    for _, row, content in source.read({"train": np.zeros(1, np.int64)}):
        name = source.names["train"][row]
        if isinstance(content, str):
            raise UserError(f"DATA: {name}: {content}")
        try:
            pixels = decode(content, None, "crop") if isinstance(content, bytes) else content
        except DefectError as error:
            raise UserError(f"DATA: {name}: {error}") from None
        return int(pixels.shape[0]), int(pixels.shape[1])
    raise UserError("DATA: no image found, allowed: a folder of images for each class")


def split_sizes(source: Source, trusted: bool) -> dict[str, int]:
    """Numbers of held-out, trusted and suspect images. Raises UserError where a rule has too few trusted ones.

    Args:
        source: the images given.
        trusted: whether trusted images come from elsewhere.
    """
    settings = SplitSettings(test_share=TEST_SHARE, reserve=0 if trusted else RESERVE, public=0)
    sizes = {name: len(rows) for name, (_, rows) in arrange(source.labels, settings, source.classes).items()}
    if not sizes["test"]:
        raise UserError(
            f"DATA: {len(source.labels['train'])} images given, none of which can be held out; allowed: at least two of a class, "
            "and more to say anything"
        )
    if trusted:
        return {"held out": sizes["test"], "suspects": sizes["train"]}
    own = committed("params/detectors.yaml")
    least, name = max((ALL_DETECTORS[name].needs_trusted(**own.get(name) or {}), name) for name in DETECTORS)
    if sizes["reserve"] < least:
        raise UserError(
            f"DATA: {sum(map(len, source.labels.values()))} images given, of which {sizes['reserve']} would be trusted; "
            f"allowed: so many that {least} are, {name} needs them, or trusted images of their own (TRUSTED)"
        )
    return {"held out": sizes["test"], "trusted": sizes["reserve"], "suspects": sizes["train"]}


def _show_plan(
    given: Given, model: Classifier, about: Mapping[str, str], sizes: Mapping[str, int], batch_norm: bool
) -> None:
    """Say what will run, on what, and roughly how long."""
    network = model.description
    mean, std = (", ".join(f"{value:.3g}" for value in network[key]) for key in ("mean", "std"))
    height, width = network["image_size"]
    say(
        f"model: {given.model.name}, SHA-256 {about['sha256'][:16]}; {kind_of(network)} ({about['network']}), "
        f"{network['num_classes']} classes"
    )
    say(
        f"images: {height}x{width} px, less {mean}, divided by {std} ({about['normalisation']}; MEAN= and STD= set others)"
    )
    say(f"data: {given.data.name}: {', '.join(f'{count} {name}' for name, count in sizes.items())}")
    say(
        f"methods: {', '.join(INSPECTORS)}; {', '.join(DETECTORS)} over the suspects; "
        f"{', '.join(purifiers_for(batch_norm=batch_norm))} with the trusted images; flips by the reversed trigger"
    )
    say(
        f"time: roughly {minutes_of(model, sizes.get('trusted', 100)):.0f} minutes on this machine, most of it the inspectors. "
        "What lies in data/, models/ and reports/ is replaced, and params.yaml holds this scenario then: `git checkout` "
        "of params.yaml and dvc.lock, and `dvc checkout`, bring a committed run back"
    )


def minutes_of(model: Classifier, trusted: int) -> float:
    """A guess at the time, by a timed pass: inspectors pass every class, forward and backward, some hundred times.

    150 epochs of a search are a usual number and not a bound; the rest of the stages are a few minutes of their own starts.
    """
    device = pick_device()
    network, about, seconds = frozen(model, device), model.description, 0.0
    images = torch.zeros(32, about["channels"], *about["image_size"], device=device, requires_grad=True)
    for _ in range(2):  # the first one warms up
        start = time.perf_counter()
        torch.autograd.grad(network(images).sum(), images)
        seconds = (time.perf_counter() - start) / len(images)
    return 3 + about["num_classes"] * (150 * trusted + 300 * 30) * seconds / 60


def check_understood(model: Classifier, test: ImageSet) -> None:
    """Raises UserError, with what may be wrong, where the accuracy on held-out images is no better than chance."""
    acc, count = accuracy_of(model, test), len(test)
    chance = float(np.bincount(test.labels).max() / count)
    if near_chance(acc, count, chance):
        low, high = wilson(acc, count)
        raise UserError(
            f"MODEL: NO VERDICT: ACC {acc:.3f} [{low:.2f}, {high:.2f}] on {count} held-out images, no better than chance "
            f"({chance:.2f}), so normalisation, class order or network is not the one assumed; {hints(model, test)}"
        )


def accuracy_of(model: Classifier, data: ImageSet) -> float:
    return float((logits_of(model, data).argmax(1).numpy() == data.labels).mean())


def hints(model: Classifier, data: ImageSet) -> str:
    """What ACC would be with the usual normalisations, and with the outputs in the order that fits best, in words."""
    from scipy.optimize import linear_sum_assignment

    own, accs = (model.mean.clone(), model.std.clone()), {}
    for name, (mean, std) in USUAL.items():
        for buffer, value in ((model.mean, mean), (model.std, std)):
            # Grey images have one value, the mean of three.
            given = torch.tensor(value).flatten()
            buffer.copy_((given if given.numel() == buffer.numel() else given.mean()).view(-1, 1, 1).expand_as(buffer))
        accs[name] = accuracy_of(model, data)
    model.mean.copy_(own[0])
    model.std.copy_(own[1])
    predicted, classes = logits_of(model, data).argmax(1).numpy(), len(data.classes)
    confusion = np.bincount(data.labels * classes + predicted, minlength=classes * classes).reshape(classes, classes)
    rows, columns = linear_sum_assignment(-confusion)
    said = ", ".join(f"{name} {acc:.2f}" for name, acc in accs.items())
    return (
        f"ACC with a mean and std of {said} (MEAN, STD); with the outputs in the order that fits these images best "
        f"{confusion[rows, columns].sum() / len(data):.2f} (CLASSES), which of few images is above chance by itself"
    )
