"""Variations by pipelines of diffusers: the real classes, with random weights of a few thousand numbers, loaded from a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from copied import copied
from tiny import TINY, run_stages, write_params
from unpoison.core.content_store import ContentStore
from unpoison.core.errors import ParameterError, UserError
from unpoison.core.files import read_json
from unpoison.core.hyperparameters import check
from unpoison.core.sharded import in_turn
from unpoison.data.imageset import ImageSet
from unpoison.variations import VARIATIONS
from unpoison.variations.generate import generate
from unpoison.variations.pipelines import Pipeline, find_model, open_pipeline
from unpoison.variations.sampling import Settings, vary

pytest.importorskip("transformers", reason="transformers is not installed: `pip install '.[pipelines]'`")

from tiny_pipelines import MAKERS, SIDE, save_pipeline

CPU = torch.device("cpu")
COMMIT = 40 * "a"
pytestmark = [
    pytest.mark.filterwarnings("ignore::FutureWarning"),
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),
    pytest.mark.filterwarnings("ignore::UserWarning"),
]


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    return {name: save_pipeline(name, tmp_path_factory.mktemp("pipelines") / name) for name in MAKERS}


def own_of(name: str) -> dict[str, Any]:
    small = {"steps": 2, "batch_size": 3, "size": SIDE, "enlarging": 2, "guidance": 2.0}
    whole = VARIATIONS[name].whole({})
    return whole | {key: value for key, value in small.items() if key in whole}


def opened(name: str, folder: Path) -> Pipeline:
    kind = VARIATIONS[name].pipeline
    assert kind is not None
    return open_pipeline(kind, model=str(folder), revision=None, half=True)


def test_every_pipeline_is_tried() -> None:
    assert set(MAKERS) == {name for name, method in VARIATIONS.items() if method.pipeline is not None}


@pytest.mark.parametrize("name", MAKERS)
def test_what_an_image_becomes_depends_on_it_and_its_key_alone(name: str, folders: dict[str, Path]) -> None:
    method, pipeline = VARIATIONS[name], opened(name, folders[name])
    images = torch.randint(0, 256, (4, 3, 8, 8), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))

    def made(rows: list[int], seed: int = 0) -> torch.Tensor:
        keys = [row + 10 for row in rows]
        settings = Settings(num_variations=2)
        return vary(method, pipeline, images[rows], keys, settings, own_of(name), seed=seed, device=CPU)

    together = made([0, 1, 2, 3])
    assert together.shape == (4, 2, 3, 8, 8)
    assert torch.equal(made([3, 1]), together[[3, 1]])
    assert not torch.equal(together[:, 0], together[:, 1])
    assert not torch.equal(made([0], seed=1), together[:1])


@pytest.mark.parametrize("name", MAKERS)
def test_evaluations_are_those_of_the_network(name: str, folders: dict[str, Path]) -> None:
    method, pipeline, passed = VARIATIONS[name], opened(name, folders[name]), [0]
    loaded = pipeline._loaded()

    def count(module: Any, given: Any, made: Any) -> None:
        passed[0] += len(made[0])

    for part in ("unet", "image_unet", "decoder", "super_res_first", "super_res_last"):
        if hasattr(loaded, part):
            getattr(loaded, part).register_forward_hook(count)
    own = own_of(name) | {"batch_size": 1}
    vary(method, pipeline, torch.zeros(1, 3, 8, 8, dtype=torch.uint8), [0], Settings(), own, seed=0, device=CPU)
    assert passed == [method.evaluations(**own)]


def test_a_data_set_of_one_channel_and_a_worker_elsewhere(folders: dict[str, Path], tmp_path: Path) -> None:
    images = np.random.default_rng(0).integers(0, 256, (3, 12, 12, 1), dtype=np.uint8)
    data, name = ImageSet(images, np.zeros(3, np.int64), ("a",)), "sd_image_variation"
    pipeline = opened(name, folders[name])
    here, there = (
        generate(
            data,
            name,
            pipeline,
            Settings(),
            own_of(name),
            seed=0,
            store=ContentStore(tmp_path / engine.__name__, engine),
        )
        for engine in (in_turn, copied)
    )
    assert here.gather().shape == (3, 1, 12, 12, 1)
    assert (here.gather() == there.gather()).all()
    # Another folder with the same files is the same model.
    moved = tmp_path / "elsewhere"
    folders[name].rename(moved)
    try:
        again = generate(
            data, name, opened(name, moved), Settings(), own_of(name), seed=0, store=ContentStore(tmp_path / "in_turn")
        )
    finally:
        moved.rename(folders[name])
    assert (again.made, again.reused) == (0, 3)


def test_models_that_cannot_be_used_are_refused_in_one_line(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    with pytest.raises(ParameterError, match=r"^revision: None given for a/b, allowed: the 40 hexadecimal digits"):
        find_model("a/b", None)
    with pytest.raises(ParameterError, match=r"^revision: 'main' given for a/b, allowed: the 40 hexadecimal digits"):
        find_model("a/b", "main")
    said = rf"^model: 'a/b' given, which is not on this machine; allowed: after `hf download a/b --revision {COMMIT} --include"
    with pytest.raises(ParameterError, match=said):
        find_model("a/b", COMMIT)
    with pytest.raises(ParameterError, match=r"^model: 'no folder' given, allowed: a folder, or OWNER/NAME"):
        find_model("no folder", None)
    with pytest.raises(UserError, match=r"model_index\.json: no such file, allowed: a pipeline as diffusers saves it"):
        find_model(str(tmp_path), None)
    with pytest.raises(UserError, match=r"_class_name: 'StableDiffusionImg2ImgPipeline' found, allowed: UnCLIP"):
        opened("unclip", folders["sd_img2img"])
    with pytest.raises(ParameterError, match=r"^model: 'a/b--c' given, allowed: OWNER/NAME \("):
        find_model("a/b--c", COMMIT)


def test_a_model_that_is_not_whole_or_has_pickles_is_refused_in_one_line(tmp_path: Path) -> None:
    folder = save_pipeline("sd_img2img", tmp_path / "model")
    find_model(str(folder), None)
    weights = "unet/diffusion_pytorch_model.safetensors"
    for file, said in (
        (
            "tokenizer/tokenizer.json",
            r"tokenizer/vocab\.json: no such file, allowed: a pipeline as diffusers saves it, with all",
        ),
        ("scheduler/scheduler_config.json", r"scheduler/scheduler_config\.json: no such file"),
        ("vae/config.json", r"vae/config\.json: no such file"),
        (weights, rf"{weights}: no such file, nor model\.safetensors, allowed: weights as \.safetensors"),
    ):
        (folder / file).rename(tmp_path / "away")
        with pytest.raises(UserError, match=said):
            find_model(str(folder), None)
        (tmp_path / "away").rename(folder / file)
    # Weights in pickles alone, and an index of safetensors that names pickles or files elsewhere.
    (folder / weights).rename(folder / "unet" / "diffusion_pytorch_model.bin")
    with pytest.raises(UserError, match=r"unet/diffusion_pytorch_model\.bin: weights as a pickle, which runs code"):
        find_model(str(folder), None)
    index = folder / f"{weights}.index.json"
    for shard in ("diffusion_pytorch_model.bin", "../vae/diffusion_pytorch_model.safetensors"):
        index.write_text(json.dumps({"weight_map": {"conv_in.weight": shard}}))
        with pytest.raises(UserError, match=rf"weight_map: '{shard}' given, allowed: \.safetensors files beside it"):
            find_model(str(folder), None)
    index.write_text(json.dumps({"weight_map": {"conv_in.weight": "one-of-two.safetensors"}}))
    with pytest.raises(UserError, match=r"unet/one-of-two\.safetensors: no such file"):
        find_model(str(folder), None)


def test_the_digest_is_of_parts_that_are_links_as_well(tmp_path: Path) -> None:
    folder = save_pipeline("sd_img2img", tmp_path / "model")
    before = opened("sd_img2img", folder).digest
    (folder / "unet").rename(tmp_path / "elsewhere")
    (folder / "unet").symlink_to(tmp_path / "elsewhere")
    assert opened("sd_img2img", folder).digest == before
    config = tmp_path / "elsewhere" / "config.json"
    config.write_text(config.read_text() + " ")
    assert opened("sd_img2img", folder).digest != before


def test_parameters_that_a_pipeline_would_stumble_over() -> None:
    for name, key, value in (
        ("sd_image_variation", "size", 100),
        ("unclip", "steps", 1),
        ("unclip", "enlarging", 1),
        ("sd_img2img", "batch_size", 65),
    ):
        with pytest.raises(ParameterError, match=rf"^{key}: {value} given"):
            check({key: value}, VARIATIONS[name].parameters)
    with pytest.raises(ParameterError, match=r"^strength: 0\.3333333 given; .* allowed: at least 0\.3334$"):
        VARIATIONS["sd_img2img"].evaluations(strength=0.3333333, steps=3, guidance=1.0)
    assert VARIATIONS["sd_img2img"].evaluations(strength=0.29, steps=100, guidance=1.0) == 28


def test_weights_that_do_not_fit_end_in_one_line(folders: dict[str, Path], tmp_path: Path) -> None:
    folder = save_pipeline("sd_image_variation", tmp_path / "damaged")
    config = folder / "unet" / "config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "block_out_channels": [8, 24]}))
    name = "sd_image_variation"
    own, images = own_of(name), torch.zeros(1, 3, 8, 8, dtype=torch.uint8)
    with pytest.raises(UserError, match=r"damaged: not readable as a StableDiffusionImageVariationPipeline \("):
        vary(VARIATIONS[name], opened(name, folder), images, [0], Settings(), own, seed=0, device=CPU)
    # What is found out only when images are asked for.
    folder = save_pipeline("sd_image_variation", tmp_path / "odd")
    config = folder / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "num_train_timesteps": 1}))
    with pytest.raises(UserError, match=r"odd: no images from a StableDiffusionImageVariationPipeline \(\w+: "):
        vary(VARIATIONS[name], opened(name, folder), images, [0], Settings(), own, seed=0, device=CPU)


def test_stages_with_a_pipeline_do_without_a_prior(
    folders: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = save_pipeline("sd_img2img", tmp_path / "model")
    own = {"model": str(folder), "size": SIDE, "steps": 2, "batch_size": 16}
    changes = {f"params/variations.yaml:sd_img2img.{key}": value for key, value in own.items()}
    monkeypatch.chdir(tmp_path)
    # A U-Net that would not fit the images is none of this run's business.
    write_params(tmp_path, {**TINY, **changes, "variations.method": "sd_img2img", "prior.channels": [8] * 7})
    run_stages("check_params", "prepare", "poison", "train_prior", "generate_variations")
    assert read_json(Path("models/prior/absent.json"))["because"] == "variations.method: sd_img2img"
    about = read_json(Path("data/variations/manifest.json"))
    weights = read_json(Path("data/checked/weights.json"))["weights"]
    assert about["sampler"]["weights"] == weights
    assert set(about["made_from"]) == {"poisoned"}
    # Other weights in the same place, which no parameter tells of.
    config = folder / "scheduler" / "scheduler_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), "beta_end": 0.02}))
    run_stages("check_params")
    assert read_json(Path("data/checked/weights.json"))["weights"] != weights
