"""Pipelines of diffusers with a few thousand random weights, saved to a folder as published ones are."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

SIDE = 16
"""Side in pixels of the images that most of them make."""


def save_pipeline(name: str, folder: Path) -> Path:
    """Save the pipeline of a method of `unpoison.variations` into a folder."""
    # Weights are drawn from the global random state, which is put back.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        MAKERS[name](folder.with_suffix(".parts")).save_pretrained(folder, safe_serialization=True)
    if name == "unclip":
        # As the published models have it, which were saved when this pipeline was not yet among the deprecated ones.
        index = json.loads((folder / "model_index.json").read_text())
        index["text_proj"] = ["unclip", "UnCLIPTextProjModel"]
        (folder / "model_index.json").write_text(json.dumps(index))
    return folder


def vision() -> dict[str, Any]:
    from transformers import CLIPImageProcessor, CLIPVisionConfig, CLIPVisionModelWithProjection

    config = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=32,
        projection_dim=32,
        image_size=16,
        patch_size=8,
        num_attention_heads=2,
        num_hidden_layers=1,
    )
    processor = CLIPImageProcessor(crop_size={"height": 16, "width": 16}, size={"shortest_edge": 16})
    return {"encoder": CLIPVisionModelWithProjection(config).eval(), "processor": processor}


def autoencoder() -> Any:
    from diffusers import AutoencoderKL

    return AutoencoderKL(
        block_out_channels=[8, 8],
        down_block_types=["DownEncoderBlock2D"] * 2,
        up_block_types=["UpDecoderBlock2D"] * 2,
        latent_channels=4,
        norm_num_groups=4,
    )


def unet() -> Any:
    from diffusers import UNet2DConditionModel

    return UNet2DConditionModel(
        block_out_channels=(8, 16),
        layers_per_block=1,
        sample_size=SIDE // 2,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        cross_attention_dim=32,
        attention_head_dim=4,
        norm_num_groups=4,
    )


def scheduler() -> Any:
    from diffusers import DDIMScheduler

    return DDIMScheduler(
        beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", clip_sample=False, steps_offset=1
    )


def versatile_diffusion(parts: Path) -> Any:
    from diffusers import VersatileDiffusionImageVariationPipeline

    seen = vision()
    return VersatileDiffusionImageVariationPipeline(
        image_feature_extractor=seen["processor"],
        image_encoder=seen["encoder"],
        image_unet=unet(),
        vae=autoencoder(),
        scheduler=scheduler(),
    )


def sd_image_variation(parts: Path) -> Any:
    from diffusers import StableDiffusionImageVariationPipeline

    seen = vision()
    return StableDiffusionImageVariationPipeline(
        vae=autoencoder(),
        image_encoder=seen["encoder"],
        unet=unet(),
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=seen["processor"],
        requires_safety_checker=False,
    )


def text(parts: Path, *, projected: bool) -> tuple[Any, Any]:
    """A text encoder and its tokenizer, which knows single letters."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

    letters = [*"abcdefghijklmnopqrstuvwxyz"]
    words = [*letters, *(f"{letter}</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    parts.mkdir(parents=True, exist_ok=True)
    (parts / "vocab.json").write_text(json.dumps({word: number for number, word in enumerate(words)}))
    (parts / "merges.txt").write_text("#version: 0.2\n")
    tokenizer = CLIPTokenizer(str(parts / "vocab.json"), str(parts / "merges.txt"), model_max_length=8)
    config = CLIPTextConfig(
        vocab_size=len(words),
        hidden_size=32,
        intermediate_size=32,
        projection_dim=32,
        num_attention_heads=2,
        num_hidden_layers=1,
        max_position_embeddings=8,
        bos_token_id=len(words) - 2,
        eos_token_id=len(words) - 1,
        pad_token_id=len(words) - 1,
    )
    return (CLIPTextModelWithProjection if projected else CLIPTextModel)(config).eval(), tokenizer


def sd_img2img(parts: Path) -> Any:
    from diffusers import StableDiffusionImg2ImgPipeline

    encoder, tokenizer = text(parts, projected=False)
    return StableDiffusionImg2ImgPipeline(
        vae=autoencoder(),
        text_encoder=encoder,
        tokenizer=tokenizer,
        unet=unet(),
        scheduler=scheduler(),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def unclip(parts: Path) -> Any:
    from diffusers import UnCLIPImageVariationPipeline, UnCLIPScheduler, UNet2DConditionModel, UNet2DModel
    from diffusers.pipelines.deprecated.unclip import UnCLIPTextProjModel

    (encoder, tokenizer), seen = text(parts, projected=True), vision()
    decoder = UNet2DConditionModel(
        sample_size=8,
        in_channels=3,
        out_channels=6,
        down_block_types=("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
        up_block_types=("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
        mid_block_type="UNetMidBlock2DSimpleCrossAttn",
        block_out_channels=(8, 16),
        layers_per_block=1,
        cross_attention_dim=16,
        attention_head_dim=4,
        norm_num_groups=4,
        resnet_time_scale_shift="scale_shift",
        class_embed_type="identity",
    )
    larger = [
        UNet2DModel(
            sample_size=SIDE,
            layers_per_block=1,
            down_block_types=("ResnetDownsampleBlock2D",) * 2,
            up_block_types=("ResnetUpsampleBlock2D",) * 2,
            block_out_channels=(8, 16),
            norm_num_groups=4,
            in_channels=6,
            out_channels=3,
        )
        for _ in range(2)
    ]
    return UnCLIPImageVariationPipeline(
        decoder=decoder,
        text_encoder=encoder,
        tokenizer=tokenizer,
        text_proj=UnCLIPTextProjModel(clip_embeddings_dim=32, time_embed_dim=32, cross_attention_dim=16),
        feature_extractor=seen["processor"],
        image_encoder=seen["encoder"],
        super_res_first=larger[0],
        super_res_last=larger[1],
        decoder_scheduler=UnCLIPScheduler(variance_type="learned_range"),
        super_res_scheduler=UnCLIPScheduler(variance_type="fixed_small_log"),
    )


MAKERS: dict[str, Callable[[Path], Any]] = {
    "versatile_diffusion": versatile_diffusion,
    "sd_image_variation": sd_image_variation,
    "sd_img2img": sd_img2img,
    "unclip": unclip,
}
