"""Models from elsewhere at the doors that load them: nothing is asked for, nothing outside is opened, little memory is taken."""

from __future__ import annotations

import atexit
import json
import shutil
import tempfile
from collections.abc import Callable
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm  # noqa: F401
import torch
from safetensors.torch import load_file, save_file

from hostile import harness
from hostile.artefacts import within
from hostile.harness import Accepted, Case, Refused, knock
from unpoison import models
from unpoison.core.errors import UserError
from unpoison.data.imageset import ImageSet
from unpoison.models import torchvision_networks  # noqa: F401
from unpoison.variations.prior import Prior, load_prior, save_prior
from unpoison.variations.unet import UNet

CLASSES = tuple("abcde")
ABOUT, WEIGHTS = "model.json", "model.safetensors"
IMAGES = np.random.default_rng(0).integers(0, 256, (2, 16, 16, 3), dtype=np.uint8)
DATA = ImageSet(IMAGES, np.zeros(2, np.int64), CLASSES)
Tensors = dict[str, torch.Tensor]
# What is refused for its size may take this much memory, of which Python's own bookkeeping is a part.
LITTLE = 100 << 20


@cache
def intact(kind: str) -> Path:
    """A folder with a model of a kind, made once: a small network, a library's, or a prior."""
    folder = Path(tempfile.mkdtemp(prefix="unpoison-models-"))
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    if kind == "prior":
        save_prior(Prior(UNet(12, [8]), 2, 1.0), folder, made_by={})
        return folder
    arguments = {} if ":" in kind else {"width": 8}
    models.save(models.build(kind, num_classes=5, image_size=16, **arguments), folder, classes=CLASSES, made_by={})
    return folder


def tampered(*changes: Callable[[Path], object], kind: str = "resnet18") -> Callable[[Path], None]:
    """Maker of a copy of a model that is changed, and whose digest fits again."""

    def make(folder: Path) -> None:
        shutil.copytree(intact(kind), folder, dirs_exist_ok=True)
        for change in changes:
            change(folder)
        if (folder / WEIGHTS).is_file():
            about = json.loads((folder / ABOUT).read_text())
            about["files"][WEIGHTS] = sha256((folder / WEIGHTS).read_bytes()).hexdigest()
            (folder / ABOUT).write_text(json.dumps(about))

    return make


def network(**values: Any) -> Callable[[Path], None]:
    return within(ABOUT, lambda about: about["network"].update(values))


def unet(**values: Any) -> Callable[[Path], None]:
    return within(ABOUT, lambda about: about["unet"].update(values))


def tensors(edit: Callable[[Tensors], Tensors]) -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        save_file(edit(load_file(folder / WEIGHTS)), folder / WEIGHTS)

    return change


def one(name: str, edit: Callable[[torch.Tensor], torch.Tensor]) -> Callable[[Path], None]:
    return tensors(lambda weights: weights | {name: edit(weights[name])})


def header(text: bytes, length: int | None = None, body: bytes = b"") -> Callable[[Path], None]:
    def change(folder: Path) -> None:
        (folder / WEIGHTS).write_bytes((len(text) if length is None else length).to_bytes(8, "little") + text + body)

    return change


def load(folder: Path) -> Any:
    model = models.load(folder, DATA)
    with torch.inference_mode():
        return model(DATA.tensor() / 255).double().round(decimals=3).tolist()


def prior(folder: Path) -> Any:
    return float(sum(value.double().abs().sum() for value in load_prior(folder).unet.state_dict().values()))


def memory_to_refuse(folder: Path) -> Any:
    """Bytes by which the process grows until the model is refused, whatever data it is for."""
    before = harness._peak()
    with pytest.raises(UserError, match="weights of another architecture"):
        models.load(folder)
    return harness._peak() - before


def logits_of(kind: str) -> Callable[[Any], bool]:
    return lambda value: np.allclose(value, load(intact(kind)), atol=2e-3)


def doubled_norm(weights: Tensors) -> Tensors:
    return weights | {name: value * 0 - 1 for name, value in weights.items() if name.endswith("running_var")}


HEAD = "head.weight"
MODELS = [
    Case("intact", tampered(), Accepted(logits_of("resnet18"))),
    Case("intact-of-a-library", tampered(kind="timm:test_resnet"), Accepted(logits_of("timm:test_resnet"))),
    Case(
        "pretrained-by-name",
        tampered(network(name="timm:test_resnet", arguments={"pretrained": True})),
        Refused("pretrained: allowed: none"),
    ),
    Case(
        "pretrained-from-a-file",
        tampered(network(arguments={"pretrained": "/etc/passwd"})),
        Refused("pretrained: allowed: none"),
    ),
    Case(
        "name-on-a-hub",
        tampered(network(name="timm:hf-hub:someone/model")),
        Refused(r"model\.json: network: name: 'timm:hf-hub:someone/model' given"),
    ),
    Case("name-of-a-folder", tampered(network(name="timm:local-dir:/etc")), Refused(r"model\.json: network: name: ")),
    Case(
        "name-with-a-foreign-tag",
        tampered(network(name="timm:test_resnet.hf-hub:x", arguments={})),
        Refused("no pretrained tag"),
    ),
    Case(
        "name-of-no-network",
        tampered(network(name="os:system")),
        Refused(r"model\.json: network: name: 'os:system' given"),
    ),
    Case("name-without-end", tampered(network(name="timm:" + "x" * 100_000)), Refused(r"model\.json: network\.name: ")),
    Case("name-as-number", tampered(network(name=1)), Refused(r"network\.name: 1 found")),
    Case(
        "argument-that-is-not-known",
        tampered(network(arguments={"checkpoint_path": "/etc/passwd"})),
        Refused("checkpoint_path: unknown key"),
    ),
    Case(
        "argument-of-another-name",
        tampered(network(arguments={"width": 8, "name": "vgg19_bn"})),
        Refused("name: unknown key"),
    ),
    Case("argument-of-another-type", tampered(network(arguments={"width": "8"})), Refused(r"width: '8' given")),
    Case(
        "width-past-memory", tampered(network(arguments={"width": 1 << 20})), Refused("weights of another architecture")
    ),
    Case(
        "width-past-numbers", tampered(network(arguments={"width": 1 << 62})), Refused(r"model\.(json|safetensors): ")
    ),
    Case(
        "classes-past-memory",
        tampered(network(num_classes=1 << 40), within(ABOUT, lambda about: about.update(classes=["a"]))),
        Refused(r"network\.num_classes: 1099511627776 found"),
    ),
    Case(
        "a-giant-of-a-library",
        tampered(network(name="timm:vit_giant_patch14_224", arguments={}, image_size=[224, 224])),
        Refused("the data have 16x16 px"),
    ),
    Case("sides-past-memory", tampered(network(image_size=[1 << 30, 1 << 30])), Refused(r"image_size\.'?0'?: ")),
    Case("sides-as-one", tampered(network(image_size=[16])), Refused("image_size: ")),
    Case(
        "sides-of-other-data",
        tampered(network(image_size=[32, 32])),
        Refused("a model for images of 32x32 px, 3 channels, the data have 16x16 px"),
    ),
    Case(
        "classes-of-other-data",
        tampered(within(ABOUT, lambda about: about.update(classes=list("edcba")))),
        Refused("a model for the classes 'e'"),
    ),
    Case(
        "classes-fewer-than-logits",
        tampered(within(ABOUT, lambda about: about.update(classes=["a"]))),
        Refused("1 classes for 5 logits"),
    ),
    Case("mean-of-two-channels", tampered(network(mean=[0.5, 0.5])), Refused(r"mean: 2 values given")),
    Case("mean-past-float32", tampered(network(mean=[1e300] * 3)), Refused(r"network\.mean\.")),
    Case("std-of-zero", tampered(network(std=[0.25, 0.0, 0.25])), Refused(r"network\.std\.'?1'?: 0\.0 found")),
    Case("std-below-zero", tampered(network(std=[-0.25] * 3)), Refused(r"network\.std\.")),
    Case("no-network", tampered(within(ABOUT, lambda about: about.pop("network"))), Refused("network: nothing found")),
    Case("network-with-a-seed", tampered(network(seed=3)), Accepted(logits_of("resnet18"))),
    Case(
        "weights-not-a-number",
        tampered(one(HEAD, lambda w: w * float("nan"))),
        Refused(r"model\.safetensors: head\.weight has values that are not finite: made by training that diverged"),
    ),
    Case(
        "weights-infinite",
        tampered(one("head.bias", lambda w: w + float("inf"))),
        Refused("head.bias has values that are not finite"),
    ),
    Case(
        "weights-of-64-bits",
        tampered(one(HEAD, lambda w: w.double())),
        Refused(r"head\.weight is \(5, 64\) of float64"),
    ),
    Case("weights-of-whole-numbers", tampered(one(HEAD, lambda w: w.long())), Refused(r"of int64")),
    Case(
        "weights-of-16-bits", tampered(one(HEAD, lambda w: w.half())), Accepted(lambda value: np.shape(value) == (2, 5))
    ),
    Case("variance-below-zero", tampered(tensors(doubled_norm)), Refused("has a negative variance")),
    Case(
        "one-tensor-less",
        tampered(tensors(lambda w: {k: v for k, v in w.items() if k != HEAD})),
        Refused(r"head\.weight is absent"),
    ),
    Case("one-tensor-more", tampered(tensors(lambda w: w | {"more": torch.zeros(3)})), Refused(r"more is \(3,\)")),
    Case(
        "names-with-a-prefix",
        tampered(tensors(lambda w: {f"module._orig_mod.{k}": v for k, v in w.items()})),
        Refused(r"every name begins with 'module\._orig_mod\.'"),
    ),
    Case("header-of-4-GiB", tampered(header(b"{}", 1 << 32)), Refused("a header of 4294967296 bytes")),
    Case("header-past-the-end", tampered(header(b"{}", 1000)), Refused("not a readable safetensors file")),
    Case("header-that-nests", tampered(header(b'{"a":' * 50_000)), Refused("not a readable safetensors file")),
    Case(
        "tensor-past-the-end",
        tampered(header(b'{"a":{"dtype":"F32","shape":[1048576,1024],"data_offsets":[0,4294967296]}}')),
        Refused("not a readable safetensors file"),
    ),
    Case(
        "no-bytes",
        tampered(lambda folder: (folder / WEIGHTS).write_bytes(b"")),
        Refused("not a readable safetensors file"),
    ),
    Case(
        "a-pickle",
        tampered(lambda folder: (folder / WEIGHTS).write_bytes(b"\x80\x04cos\nsystem\n(S'touch x'\ntR.")),
        Refused("not a readable safetensors file"),
    ),
    Case(
        "weights-in-another-folder",
        tampered(within(ABOUT, lambda about: about["files"].update({"../x": "0" * 64}))),
        Refused(r"files: .*allowed: "),
    ),
]
PRIORS = [
    Case("prior-intact", tampered(kind="prior"), Accepted(lambda value: value == prior(intact("prior")))),
    Case(
        "prior-of-channels-that-blocks-do-not-make",
        tampered(unet(in_channels=13), kind="prior"),
        Refused(r"unet\.in_channels: a multiple of unshuffle² = 4 is allowed"),
    ),
    Case(
        "prior-of-endless-levels",
        tampered(unet(channels=[8] * 1000), kind="prior"),
        Refused("unet.channels: "),
    ),
    Case(
        "prior-past-memory",
        tampered(unet(channels=[1 << 20]), kind="prior"),
        Refused("weights of another architecture"),
    ),
    Case(
        "prior-not-finite",
        tampered(one("conv_in.bias", lambda w: w * float("nan")), kind="prior"),
        Refused("conv_in.bias has values that are not finite"),
    ),
    Case(
        "prior-of-levels-that-differ",
        tampered(unet(channels=[8, 8]), kind="prior"),
        Refused("weights of another architecture"),
    ),
    Case(
        "prior-of-channels-without-groups",
        tampered(unet(channels=[12]), kind="prior"),
        Refused(r"model\.json: unet: cannot be built"),
    ),
    Case(
        "prior-unshuffled-by-0",
        tampered(within(ABOUT, lambda about: about.update(unshuffle=0)), kind="prior"),
        Refused("unshuffle: 0 found"),
    ),
    Case(
        "prior-of-strength-2",
        tampered(within(ABOUT, lambda about: about.update(max_strength=2.0)), kind="prior"),
        Refused(r"max_strength: 2\.0 found"),
    ),
]

LARGE = [
    Case(
        "giant-of-timm",
        tampered(network(name="timm:vit_giant_patch14_224", arguments={}, image_size=[224, 224])),
        Accepted(lambda value: value < LITTLE),
    ),
    Case(
        "giant-of-torchvision",
        tampered(network(name="torchvision:regnet_y_128gf", arguments={})),
        Accepted(lambda value: value < LITTLE),
    ),
    Case("giant-by-its-width", tampered(network(arguments={"width": 1 << 12})), Accepted(lambda value: value < LITTLE)),
    Case(
        "giant-by-its-classes",
        tampered(network(num_classes=1 << 20), within(ABOUT, lambda about: about.update(classes=["a"] * (1 << 20)))),
        Accepted(lambda value: value < LITTLE),
    ),
]


@pytest.mark.parametrize(
    ("door", "case"),
    [
        pytest.param(door, case, id=f"{door.__name__}-{case}")
        for door, cases in ((load, MODELS), (prior, PRIORS), (memory_to_refuse, LARGE))
        for case in cases
    ],
)
def test_case(door: Callable[[Path], Any], case: Case, tmp_path: Path) -> None:
    knock(door, case, tmp_path)
