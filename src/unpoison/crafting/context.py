"""What an attacker has at hand when he makes a trigger."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from ..core.code import code_of
from ..core.content_store import ContentStore
from ..core.errors import ParameterError
from ..data.imageset import ImageSet
from ..training.recipe import Recipe

SURROGATE = {"name": "resnet18", "width": 16, "stem": "conv3_pool"}


@dataclass(frozen=True, kw_only=True)
class Context:
    """The data set, and what the attacker's own networks are like.

    Attributes:
        train: the clean training set, labelled.
        seed: of everything the attacker draws.
        target: the class that triggered images are to get.
        network: name and arguments of networks that the attacker trains himself (`models.build`).
        recipe: how he trains them.
        store: where expensive assets are kept.
    """

    train: ImageSet
    seed: int
    target: int = 0
    network: dict[str, Any] = field(default_factory=lambda: dict(SURROGATE))
    recipe: Recipe = field(default_factory=Recipe)
    store: ContentStore = field(default_factory=lambda: ContentStore(None))

    def __post_init__(self) -> None:
        if self.store.folder is not None and not self.train.digest:
            raise ValueError("a data set without a digest given, allowed: one that assets can be kept for")

    def determined_by(self, module: str, **settings: Any) -> dict[str, Any]:
        """All that an asset depends on: the data, the seed, the libraries, `settings`, and the code of the module that
        makes it and of all that it imports."""
        libraries = {name: version(name) for name in ("numpy", "scipy", "torch", "torchvision", "timm")}
        about = {"data": self.train.digest, "seed": self.seed, "libraries": libraries, "code": code_of(module)}
        return {**about, **settings}

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width, channels."""
        return (*self.train.image_size, self.train.channels)

    def need_colour(self) -> None:
        """Raises ParameterError where images have one channel."""
        if self.train.channels != 3:
            raise ParameterError(f"images: {self.train.channels} channel given, allowed: colour images (3)")

    def need_room(self, key: str, size: int) -> None:
        """Raises ParameterError where a square of `size` pixels, given as `key`, is larger than the image."""
        side = min(self.train.image_size)
        if size > side:
            raise ParameterError(f"{key}: {size} given, allowed: 1 to {side}, the image's side")
