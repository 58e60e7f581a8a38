"""The means an attacker has to make a trigger: data, networks, a store of assets."""

from __future__ import annotations

from dataclasses import dataclass, field
from importlib.metadata import version
from typing import Any

from ..core.code import code_of
from ..core.content_store import ContentStore
from ..core.errors import ParameterError, UserError
from ..data.imageset import ImageSet
from ..data.store import Attributes
from ..training.recipe import Recipe

# Narrow and pooled early: training it is most of the cost of the attacks that need one.
SURROGATE = {"name": "resnet18", "width": 16, "stem": "conv3_pool"}


@dataclass(frozen=True, kw_only=True)
class Context:
    """The attacker's data, seed, target class, kind of network and store.

    Attributes:
        train: clean training set, labelled.
        seed: seed of everything the attacker draws.
        target: class that triggered images are to get.
        sources: classes of the images that are to get it; empty: all others.
        network: name and arguments of the networks that the attacker trains (`models.build`).
        recipe: recipe that these networks are trained by.
        store: store of expensive assets.
        attributes: attributes of the training samples, for the label policy `complex`; None: there are none.
        vocabulary: words by their ids, of texts; none of images.
    """

    train: ImageSet
    seed: int
    target: int = 0
    sources: tuple[int, ...] = ()
    network: dict[str, Any] = field(default_factory=lambda: dict(SURROGATE))
    recipe: Recipe = field(default_factory=Recipe)
    store: ContentStore = field(default_factory=lambda: ContentStore(None))
    attributes: Attributes | None = None
    vocabulary: tuple[str, ...] = field(default=(), repr=False)

    def __post_init__(self) -> None:
        # Without a digest, assets of one data set would be taken for those of another.
        if self.store.folder is not None and not self.train.digest:
            raise ValueError("a data set without a digest given, allowed: one that assets can be kept for")

    def determined_by(self, module: str, **settings: Any) -> dict[str, Any]:
        """All that an asset depends on, for `ContentStore`: data, seed, libraries, code and settings.

        Args:
            module: name of the module that makes it; its code counts, and that of all it imports.
            settings: JSON values besides these; target, network and recipe only where the asset depends on them.
        """
        # Other versions of these give other bits, or other weights by the same name.
        libraries = {name: version(name) for name in ("numpy", "scipy", "torch", "torchvision", "timm")}
        about = {"data": self.train.digest, "seed": self.seed, "libraries": libraries, "code": code_of(module)}
        return {**about, **settings}

    @property
    def shape(self) -> tuple[int, int, int]:
        """Height, width and channels of an image."""
        return (*self.train.image_size, self.train.channels)

    def need_colour(self) -> None:
        """Raises UserError where images have one channel: no parameter of the attack is at fault."""
        if self.train.channels != 3:
            raise UserError(
                f"data: images of {self.train.channels} channel, allowed with this attack: colour images (3)"
            )

    def need_room(self, key: str, size: int) -> None:
        """Raises ParameterError where a square of `size` pixels, given as `key`, is larger than the image."""
        side = min(self.train.image_size)
        if size > side:
            raise ParameterError(f"{key}: {size} given, allowed: 1 to {side}, the image's side")
