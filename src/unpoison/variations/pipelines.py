"""Pipelines of diffusers with weights from elsewhere: where they lie, what they may be, and how images go through them.

Weights are never fetched here: what a run works with is there before it begins, under a commit's own name. Nor are
pickles read, which run code then.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr
from importlib.util import find_spec
from io import StringIO
from pathlib import Path
from typing import Annotated, Any

import torch
import torch.nn.functional as F
from annotated_types import Ge, Le, MultipleOf
from torch import Tensor

from ..compute.device import pick_device
from ..core.errors import ParameterError, UserError, one_line
from ..core.files import read_json, sha256_file, sha256_json
from ..core.hub import folder_of
from ..core.sharded import Once
from .denoising import Noise

Side = Annotated[int, Ge(8), Le(4096), MultipleOf(8)]
"""Side in pixels, which the latents have an eighth of."""
BatchSize = Annotated[int, Ge(1), Le(64)]
"""Images at a time; a shard has no more."""
INDEX = "model_index.json"
FILES = ("*.json", "*.txt", "*/*.safetensors")
"""What a pipeline needs of a model's files: weights lie in its parts' folders, whole models in one file above them."""
_WEIGHTS = ("diffusion_pytorch_model.safetensors", "model.safetensors")
"""Of parts of diffusers' and of transformers'."""
_PICKLED = (".bin", ".ckpt", ".pt", ".pth", ".pkl")


Call = Callable[[Any, Tensor, list[torch.Generator]], Tensor]
"""`call(loaded, images, generators)`: from images of three channels to the pipeline's images, both float in [0, 1]."""


class Pipeline:
    """A pipeline, loaded by each process when it is first used.

    Args:
        kind: its class in diffusers.
        folder: where its files lie, as `save_pretrained` writes them.
        digest: SHA-256 of what it is.
        half: whether a GPU computes in half precision.
    """

    def __init__(self, kind: str, folder: Path, digest: str, *, half: bool) -> None:
        self.kind, self.folder, self.digest, self.half = kind, folder, digest, half
        self._loaded = Once(self._load)

    def _load(self) -> Any:
        import diffusers
        from diffusers import pipelines
        from diffusers.pipelines.deprecated import unclip

        # Models name a part of unCLIP's by its old place, where diffusers still looks and it is not any more.
        pipelines.unclip = unclip
        device = pick_device()
        dtype = torch.float16 if self.half and device.type == "cuda" else torch.float32
        index = read_json(self.folder / INDEX)
        # A checker paints over what it takes for indecent: an image of a training set would become black.
        given: dict[str, Any] = (
            {"safety_checker": None, "requires_safety_checker": False} if "safety_checker" in index else {}
        )
        with self._blamed("not readable as"):
            loaded = getattr(diffusers, self.kind).from_pretrained(
                self.folder, torch_dtype=dtype, use_safetensors=True, local_files_only=True, **given
            )
        loaded.set_progress_bar_config(disable=True)
        return loaded.to(device)

    @contextmanager
    def _blamed(self, fact: str) -> Iterator[None]:
        """One line for whatever a model's files make diffusers raise, without its progress bars and remarks."""
        try:
            with redirect_stderr(StringIO()):
                yield
        except (MemoryError, torch.OutOfMemoryError):
            raise
        except Exception as error:
            said = f"{type(error).__name__}: {one_line(str(error))[:300]}"
            raise UserError(f"{self.folder}: {fact} a {self.kind} ({said})") from error

    def run(self, images: Tensor, noise: Noise, batch_size: int, call: Call) -> Tensor:
        """Images that the pipeline makes of images, in batches of one size, each by its own generator.

        Args:
            images: float [n, c, h, w] in [0, 1], with one channel or three.
            noise: noise of each.
            batch_size: images at a time; mid-grey ones fill up the last batch.
            call: how the pipeline is called.
        """
        loaded, made = self._loaded(), []
        for first in range(0, len(images), batch_size):
            batch = images[first : first + batch_size]
            generators = [*noise.generators[first : first + batch_size]]
            missing = batch_size - len(batch)
            filled = torch.cat([batch, batch.new_full((missing, *batch.shape[1:]), 0.5)])
            generators += [torch.Generator() for _ in range(missing)]
            with self._blamed("no images from"):
                results = call(loaded, filled.expand(-1, 3, -1, -1), generators)
            made.append(results[: len(batch)].to(images.device).float())
        whole = torch.cat(made)
        return whole.mean(1, keepdim=True) if images.shape[1] == 1 else whole


def find_model(model: str, revision: str | None) -> Path:
    """The folder of a model's files.

    Args:
        model: a folder, or the id of a repository on the Hugging Face hub whose files are in its cache on this machine.
        revision: of a repository the commit, 40 hexadecimal digits.

    Raises:
        ParameterError: no such folder, or files that were not fetched: with the command that fetches them.
        UserError: no pipeline, or weights that are pickles.
    """
    if find_spec("transformers") is None:
        raise ParameterError(
            f"model: {model!r} given, for which transformers is not installed; allowed: `pip install '.[pipelines]'` first"
        )
    folder = folder_of(model, revision, FILES)
    _check_parts(folder)
    return folder


def open_pipeline(kind: str, *, model: str, revision: str | None, half: bool) -> Pipeline:
    """The pipeline of a class of diffusers; raises what `find_model` does, and UserError for a model of another class."""
    folder = find_model(model, revision)
    if (given := read_json(folder / INDEX).get("_class_name")) != kind and given not in _ALSO.get(kind, ()):
        raise UserError(f"{folder / INDEX}: _class_name: {given!r} found, allowed: {kind}")
    # A commit says what it holds; a folder may hold anything.
    if Path(model).is_dir():
        # Into folders that are links as well, which are read as any others.
        under = [Path(place) / name for place, _, names in os.walk(folder, followlinks=True) for name in names]
        files = sorted(path for path in under if path.is_file() and path.suffix in (".json", ".txt", ".safetensors"))
        digest = sha256_json({path.relative_to(folder).as_posix(): sha256_file(path) for path in files})
    else:
        digest = sha256_json([model, revision])
    return Pipeline(kind, folder, digest, half=half)


_ALSO = {
    "VersatileDiffusionImageVariationPipeline": ("VersatileDiffusionPipeline",),
    "StableDiffusionImg2ImgPipeline": ("StableDiffusionPipeline",),
}
"""Classes whose models have all that another one needs."""


def _check_parts(folder: Path) -> None:
    """Raises UserError where a pipeline is not whole: what is missing would be found missing hours later, or not at all.

    A tokenizer without its words, for one, makes other images without a remark.
    """
    if not (folder / INDEX).is_file():
        raise UserError(f"{folder / INDEX}: no such file, allowed: a pipeline as diffusers saves it")
    for part, made_of in sorted(read_json(folder / INDEX).items()):
        # What is no part: the pipeline's own class and settings, and parts that it does without.
        if part.startswith("_") or part == "safety_checker" or not isinstance(made_of, list) or None in made_of:
            continue
        place, kind = folder / part, str(made_of[-1])
        if kind.endswith("Scheduler"):
            _check_there(place / "scheduler_config.json")
        elif "Tokenizer" in kind:
            _check_there(place / "tokenizer_config.json")
            if not (place / "tokenizer.json").is_file():
                _check_there(place / "vocab.json", place / "merges.txt")
        elif kind.endswith(("Processor", "FeatureExtractor")):
            _check_there(place / "preprocessor_config.json")
        else:
            _check_there(place / "config.json")
            _check_weights(place)


def _check_there(*files: Path) -> None:
    for file in files:
        if not file.is_file():
            raise UserError(f"{file}: no such file, allowed: a pipeline as diffusers saves it, with all of its parts")


def _check_weights(place: Path) -> None:
    """Raises UserError where a part has no weights in safetensors, all of them."""
    for name in _WEIGHTS:
        if (place / name).is_file():
            return
        index = place / f"{name}.index.json"
        if index.is_file():
            shards = read_json(index).get("weight_map")
            shards = set(shards.values()) if isinstance(shards, dict) else set()
            if not shards:
                raise UserError(f"{index}: weight_map: nothing given, allowed: the files of the weights by their names")
            for shard in map(str, sorted(shards, key=str)):
                # Names alone: what they say is read.
                if Path(shard).name != shard or not shard.endswith(".safetensors"):
                    raise UserError(f"{index}: weight_map: {shard!r} given, allowed: .safetensors files beside it")
                _check_there(place / shard)
            return
    pickled = sorted(path for path in place.iterdir() if path.suffix in _PICKLED)
    if pickled:
        raise UserError(f"{pickled[0]}: weights as a pickle, which runs code when it is read; allowed: .safetensors")
    raise UserError(f"{place / _WEIGHTS[0]}: no such file, nor {_WEIGHTS[1]}, allowed: weights as .safetensors")


def guided(steps: int, guidance: float) -> int:
    """Passes through a network in so many steps: guidance passes each image twice, with its condition and without."""
    return steps * (2 if guidance > 1 else 1)


def by_condition(steps: int, guidance: float, size: int) -> Call:
    """The call of a pipeline that begins with noise and sees of an image what CLIP does."""

    def call(loaded: Any, batch: Tensor, generators: list[torch.Generator]) -> Tensor:
        return loaded(
            pictures_of(batch),
            height=size,
            width=size,
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=generators,
            output_type="pt",
        ).images

    return call


def pictures_of(images: Tensor) -> list[Any]:
    """PIL images of images, float [n, 3, h, w] in [0, 1], for a pipeline that takes them apart by itself."""
    from PIL import Image

    pixels = (images * 255).round().to(torch.uint8).permute(0, 2, 3, 1).cpu().numpy()
    return [Image.fromarray(picture) for picture in pixels]


def resized(images: Tensor, side: int) -> Tensor:
    """Images [n, c, h, w] as squares of a side, float in [0, 1]."""
    return F.interpolate(images, (side, side), mode="bicubic", antialias=True).clamp(0, 1)
