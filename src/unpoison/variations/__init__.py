"""Variations of images by diffusion. One file per method, each a `Variation`; the prior, and whole data sets through the store."""

from __future__ import annotations

from . import data_elixir, pure_gen, samp_detox, sd_image_variation, sd_img2img, sdedit, unclip, versatile_diffusion
from . import zip as zip_
from .variation import Variation

VARIATIONS: dict[str, Variation] = {
    "sdedit": sdedit.VARIATION,
    "pure_gen": pure_gen.VARIATION,
    "samp_detox": samp_detox.VARIATION,
    "data_elixir": data_elixir.VARIATION,
    "zip": zip_.VARIATION,
    "versatile_diffusion": versatile_diffusion.VARIATION,
    "sd_image_variation": sd_image_variation.VARIATION,
    "sd_img2img": sd_img2img.VARIATION,
    "unclip": unclip.VARIATION,
}
