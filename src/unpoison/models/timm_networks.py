"""Any timm classifier that ends in one linear layer, as `timm:NAME` (with or without a pretrained tag).

timm's networks share an interface, `forward_features` and `forward_head`, so one backbone serves them all: the classifier
is taken out of the network, which leaves the pooling to `forward_head`.
"""

from __future__ import annotations

from difflib import get_close_matches
from typing import Any

import timm
from torch import Tensor, nn

from ..core.errors import ParameterError, UserError
from .classifier import Backbone
from .pretrained import put_weights, read_weights, unavailable

Normalisation = tuple[tuple[float, ...], tuple[float, ...]]


class TimmBackbone(Backbone):
    """A timm network with the identity in place of its classifier.

    Args:
        network: network with raw output [n, d, h, w], [n, h, w, d] (`output_fmt` "NHWC") or tokens [n, prefix + h * w, d].
        image_size: height and width, which give the shape of the token grid where the network does not.
    """

    def __init__(self, network: nn.Module, image_size: tuple[int, int]) -> None:
        super().__init__(network, nn.Identity(), traceable=False)
        self.image_size = image_size

    def forward(self, images: Tensor) -> Tensor:
        network: Any = self.body
        raw: Tensor = network.forward_features(images)
        return raw

    def pool(self, raw: Tensor) -> Tensor:
        network: Any = self.body
        features: Tensor = network.forward_head(raw)
        return features

    def spatial(self, raw: Tensor) -> Tensor:
        if raw.ndim == 4:
            return raw.permute(0, 3, 1, 2) if getattr(self.body, "output_fmt", "NCHW") == "NHWC" else raw
        # Class and register tokens come first and have no place in the image.
        patches = raw[:, getattr(self.body, "num_prefix_tokens", 0) :]
        # Rows and columns share the image's proportions.
        rows = round((patches.shape[1] * self.image_size[0] / self.image_size[1]) ** 0.5)
        return patches.transpose(1, 2).unflatten(2, (rows, -1))


def check_name(name: str) -> None:
    """Raises ParameterError for a name or pretrained tag timm does not have."""
    architecture, dot, tag = name.partition(".")
    if not timm.is_model(architecture):
        close = ", ".join(get_close_matches(architecture, timm.list_models(), n=5)) or "none is close"
        raise ParameterError(
            f"name: 'timm:{name}' given; timm {timm.__version__} has no such network, similar: {close}"
        )
    tags = [known.partition(".")[2] for known in timm.list_pretrained(f"{architecture}.*")]
    if dot and tag not in tags:
        raise ParameterError(
            f"name: 'timm:{name}' given; {architecture} has no pretrained tag {tag!r}, "
            f"allowed: {', '.join(tags) or 'none'}"
        )


def build(
    name: str, *, num_classes: int, image_size: tuple[int, int], channels: int, pretrained: bool | str = False
) -> tuple[Backbone, nn.Linear, Normalisation | None]:
    """Backbone, head, and the mean and std the pretrained weights want (None without such weights).

    Args:
        name: name without the prefix, known to `check_name`.
        num_classes: number of logits.
        image_size: height and width in pixels; networks made for one size are made for this one.
        channels: channels of the images; timm sums or repeats a downloaded stem's weights for other than 3.
        pretrained: weights as in `pretrained.LibraryOptions`.

    Raises:
        UserError: the classifier is not one linear layer, patches do not divide the image, or pretrained weights are
            missing or wrong.
    """
    full, published = f"timm:{name}", timm.get_pretrained_cfg(name)
    arguments: dict[str, Any] = {"num_classes": num_classes, "in_chans": channels}
    if published is not None and published.fixed_input_size:
        arguments["img_size"] = image_size
    network: Any = _download(name, arguments) if pretrained is True else timm.create_model(name, **arguments)
    # The classifier by its identity, as its name differs from network to network; a shared or missing one is refused.
    classifier = network.get_classifier()
    places = [key for key, module in network.named_modules(remove_duplicate=False) if module is classifier]
    if not isinstance(classifier, nn.Linear) or len(places) != 1:
        raise UserError(
            f"{full}: its classifier is a {type(classifier).__name__}, allowed: networks that end in one linear layer"
        )
    _check_patches(full, network, image_size)
    if isinstance(pretrained, str):
        put_weights(network, read_weights(pretrained), classifiers=places, name=full, source=pretrained)
    # Only now, with the weights in, is the network taken apart.
    parent, _, attribute = places[0].rpartition(".")
    setattr(network.get_submodule(parent), attribute, nn.Identity())
    own = (tuple(published.mean), tuple(published.std)) if pretrained and published is not None else None
    return TimmBackbone(network, image_size), classifier, own


def _check_patches(name: str, network: Any, image_size: tuple[int, int]) -> None:
    """Raises UserError where timm would cut off rows and columns that fill no patch, and a trigger in the corner with them."""
    embeddings = [getattr(network, attribute, None) for attribute in ("patch_embed", "stem")]
    for patches in embeddings:
        if isinstance(patches, timm.layers.PatchEmbed) and not patches.dynamic_img_pad:
            height, width = patches.patch_size
            if image_size[0] % height or image_size[1] % width:
                raise UserError(
                    f"{name}: images of {image_size[0]}x{image_size[1]} px given, allowed: multiples of its patches' "
                    f"{height}x{width} px"
                )


def _download(name: str, arguments: dict[str, Any]) -> Any:
    """The network with its publisher's weights."""
    try:
        return timm.create_model(name, pretrained=True, **arguments)
    except (OSError, RuntimeError) as error:  # no connection, nothing published, weights that do not fit this size
        raise unavailable(f"timm:{name}", "timm's download", error) from None
