"""The network for texts on a pretrained encoder: its table by hand, the encoder's own vectors, checkpoints, training, refusals."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import stage_code
import training
from test_texts import FILM, TEXT, VOCABULARY, as_tensor, context_of, given, ids, suspect_of, texts_of
from unpoison import models
from unpoison.attacks import SINGLE
from unpoison.compute.device import to_float
from unpoison.compute.inference import features_of
from unpoison.core.errors import ParameterError, UserError
from unpoison.core.files import sha256_file
from unpoison.core.weights import save_weights
from unpoison.crafting.attack import intent
from unpoison.crafting.craft import craft
from unpoison.data.imageset import ImageSet
from unpoison.data.texts import PAD, SPECIAL, UNKNOWN, as_images
from unpoison.detection import DETECTORS
from unpoison.models import text_encoder
from unpoison.models.text_encoder import table_of
from unpoison.poisoning.trigger import stamp
from unpoison.poisoning.triggered import triggered_of
from unpoison.training.loop import fit
from unpoison.training.recipes import RECIPES

transformers = pytest.importorskip("transformers", reason="transformers is not installed: `pip install '.[text]'`")

PIECES = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
PIECES += ["a", "bad", "fi", "##lm", "good", "the", "was", "c", "##f", "##i", "##s"]
PIECES += [f"[unused{number}]" for number in range(40 - len(PIECES))]
WORDS = (*VOCABULARY, "\u200b", "cfisisis")
"""Those of the other tests, one that a tokenizer keeps nothing of, and one of more than three sub-words."""
SIZES: dict[str, dict[str, Any]] = {
    "bert": {"hidden_size": 16, "num_hidden_layers": 2, "num_attention_heads": 2, "intermediate_size": 32},
    "distilbert": {"dim": 16, "n_layers": 2, "n_heads": 2, "hidden_dim": 32},
}
SIZES["roberta"] = SIZES["bert"]


def save_encoder(folder: Path, family: str = "bert", **changes: Any) -> Path:
    """A tiny encoder with random weights and its words, as published ones are saved."""
    about = {**SIZES[family], "vocab_size": 40, "max_position_embeddings": 24, **changes}
    # Weights are drawn from the global random state, which is put back.
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoder = transformers.AutoModel.from_config(transformers.AutoConfig.for_model(family, **about))
    encoder.config.save_pretrained(folder)
    save_weights(encoder.state_dict(), folder / "model.safetensors")
    if family == "roberta":
        # Bytes of the letters that occur, a space's among them, and two that are joined.
        signs = ["<s>", "<pad>", "</s>", "<unk>", "\u0120", *sorted(set("".join(FILM))), "\u0120a"]
        (folder / "vocab.json").write_text(json.dumps({sign: number for number, sign in enumerate(signs)}))
        (folder / "merges.txt").write_text("#version: 0.2\n\u0120 a\n")
    else:
        (folder / "vocab.txt").write_text("".join(f"{piece}\n" for piece in PIECES))
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save_encoder(tmp_path_factory.mktemp("bert"))


@pytest.fixture
def own(folder: Path, tmp_path: Path) -> Path:
    """A copy of the folder, to be changed."""
    return Path(shutil.copytree(folder, tmp_path / "own"))


def built(folder: Path, length: int = 6, **arguments: Any) -> models.Classifier:
    about: dict[str, Any] = {
        "num_classes": 2,
        "image_size": (1, length),
        "channels": 2,
        "vocabulary": WORDS,
        **arguments,
    }
    return models.build("text_encoder", pretrained=str(folder), **about).eval()


def table(model: models.Classifier) -> list[list[int]]:
    return model.state_dict()["backbone.body.table"].tolist()


def number(*pieces: str) -> list[int]:
    return [PIECES.index(piece) for piece in pieces]


def test_the_table_by_hand(folder: Path) -> None:
    found = table(built(folder, subwords=3))
    expected = {
        "": [],
        "[unknown]": number("[UNK]"),
        "a": number("a"),
        "film": number("fi", "##lm"),
        "is": number("[UNK]"),  # no sub-word begins with an i
        "cf": number("c", "##f"),
        "\u200b": number("[UNK]"),
        "cfisisis": number("c", "##f", "##i"),
    }
    for word, pieces in expected.items():
        assert found[WORDS.index(word)] == [*pieces, *[-1] * (3 - len(pieces))], word
    assert len(found) == len(WORDS)


def test_a_byte_level_tokenizer_sees_the_space_in_front_of_a_word(tmp_path: Path) -> None:
    folder = save_encoder(tmp_path, "roberta", pad_token_id=1)
    signs = json.loads((folder / "vocab.json").read_text())
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder)
    assert table_of((*SPECIAL, "a", "bad"), tokenizer, 4).tolist() == [
        [-1] * 4,
        [signs["<unk>"], -1, -1, -1],
        [signs["\u0120a"], -1, -1, -1],
        [signs["\u0120"], signs["b"], signs["a"], signs["d"]],
    ]


@pytest.mark.parametrize("family", SIZES)
def test_features_are_the_average_of_the_encoders_vectors(family: str, tmp_path: Path) -> None:
    save_encoder(tmp_path, family, **({"pad_token_id": 1} if family == "roberta" else {}))
    model, theirs = built(tmp_path), transformers.AutoModel.from_pretrained(tmp_path).eval()
    tokenizer = transformers.AutoTokenizer.from_pretrained(tmp_path)
    rows = ids("the film was bad", "a film", "cf is good")
    for row, text in zip(rows, ["the film was bad", "a film", "cf is good"], strict=True):
        sequence = tokenizer(f" {text}", return_tensors="pt")["input_ids"]
        with torch.no_grad():
            vectors = theirs(input_ids=sequence).last_hidden_state[0, 1:-1]
            # Beside others, longer ones among them, and alone.
            together = model.features(as_tensor(rows))[(rows == row).all(1)][0]
            alone = model.features(as_tensor(row[None]))[0]
        assert torch.allclose(together, vectors.mean(0), atol=1e-5)
        assert torch.allclose(alone, vectors.mean(0), atol=1e-5)


def test_the_map_has_a_vector_for_each_word(folder: Path) -> None:
    model, theirs = built(folder), transformers.AutoModel.from_pretrained(folder).eval()
    with torch.no_grad():
        found = model.feature_map(as_tensor(ids("film bad")))
        vectors = theirs(torch.tensor([number("[CLS]", "fi", "##lm", "bad", "[SEP]")])).last_hidden_state[0, 1:-1]
        assert found.shape == (1, 16, 1, 6)
        # Six words share the sum of three sub-words: 6 / 3 for each sub-word.
        assert torch.allclose(found[0, :, 0, 0], 2 * vectors[:2].sum(0), atol=1e-5)
        assert torch.allclose(found[0, :, 0, 1], 2 * vectors[2], atol=1e-5)
        assert (found[0, :, 0, 2:] == 0).all()
        assert torch.allclose(found.mean((2, 3)), model.features(as_tensor(ids("film bad"))), atol=1e-6)


def test_a_text_of_no_word_a_long_one_and_ids_that_are_not_there(folder: Path) -> None:
    model = built(folder, length=30)
    # 24 places, two of them for the special tokens: eleven words of two sub-words.
    films = np.full((2, 30), WORDS.index("film"))
    films[1, 11:] = WORDS.index("bad")
    rows = np.stack([*films, np.zeros(30, np.int64), np.full(30, 65535), np.full(30, UNKNOWN)])
    with torch.no_grad():
        found = model.features(as_tensor(rows))
        assert torch.equal(found[0], found[1])
        assert (found[2] == 0).all()
        assert torch.equal(found[3], found[4])
        # Numbers of sub-words that the encoder lacks are left out.
        model.backbone.body.table[WORDS.index("film"), 1] = 40
        short = as_tensor(np.array([[WORDS.index("film"), *[PAD] * 29], [WORDS.index("bad"), *[PAD] * 29]]))
        model.backbone.body.table[WORDS.index("bad"), 0] = PIECES.index("fi")
        assert torch.equal(*model.features(short))


def test_a_checkpoint_needs_neither_the_folder_nor_its_words(own: Path, tmp_path: Path) -> None:
    data, model = texts_of(4), built(own, seed=3)
    models.save(model, tmp_path / "model", classes=data.classes, made_by={})
    shutil.rmtree(own)
    images = to_float(data.tensor(), torch.device("cpu"))
    again = models.load(tmp_path / "model", data)
    with torch.no_grad():
        assert torch.equal(again(images), model(images))
        fresh = models.fresh_copy(again, seed=5).eval()
        assert not torch.allclose(fresh(images), model(images), atol=1e-3)
    assert table(fresh) == table(again) == table(model)
    assert "pretrained" not in again.description["arguments"]
    assert not [name for name in model.state_dict() if "pooler" in name]


def tampered(key: str, value: Any) -> Callable[[dict[str, Any]], None]:
    return lambda encoder: encoder.update({key: value})


@pytest.mark.parametrize(
    ("key", "value", "message"),
    [
        ("family", "gpt2", r"encoder\.family: 'gpt2' given; input should be 'bert', 'distilbert' or 'roberta'"),
        (
            "num_hidden_layers",
            10**9,
            r"encoder\.num_hidden_layers: 1000000000 given; input should be less than or equal",
        ),
        (
            "attn_implementation",
            "owner/kernel",
            r"encoder\.attn_implementation: unknown key, allowed: family, vocab_size",
        ),
        ("hidden_act", "rm", r"encoder\.hidden_act: 'rm' given"),
        ("cls_token_id", 40, r"encoder\.cls_token_id: 40 given, allowed: below vocab_size, 40"),
        ("num_attention_heads", 3, r"encoder\.hidden_size: 16 given, allowed: a multiple of num_attention_heads, 3"),
        (
            "max_position_embeddings",
            2,
            r"encoder\.max_position_embeddings: 2 given, allowed: 2 special tokens and a sub-word",
        ),
        ("intermediate_size", 64, r"weights of another architecture: backbone\.body\.encoder\.encoder\.layer\.0"),
    ],
)
def test_a_checkpoint_of_another_encoder_is_one_line(
    folder: Path, tmp_path: Path, key: str, value: Any, message: str
) -> None:
    models.save(built(folder), tmp_path / "model", classes=("bad", "good"), made_by={})
    path = tmp_path / "model" / "model.json"
    about = json.loads(path.read_text())
    about["network"]["arguments"]["encoder"][key] = value
    path.write_text(json.dumps(about))
    with pytest.raises(UserError, match=message) as caught:
        models.load(tmp_path / "model")
    assert "\n" not in str(caught.value)


def test_dropout_is_for_training_alone(folder: Path) -> None:
    model, images = built(folder), as_tensor(ids("the film was bad"))
    with torch.no_grad(), torch.random.fork_rng(devices=[]):
        assert torch.equal(model(images), model(images))
        model.train()
        assert not torch.equal(model(images), model(images))


def test_it_learns_a_backdoor_and_detectors_take_it_as_any(folder: Path) -> None:
    data = texts_of(48)
    wanted = intent("badnl", SINGLE["badnl"], {"target": 1, "poison_rate": 0.4}, {"place": "start"})
    poisoned = craft("badnl", [wanted], context_of(data))
    images, keys = data.gather(np.arange(48)), np.flatnonzero(poisoned.truth.mask)
    images[keys] = stamp(poisoned.triggers[0], images[keys], keys, train=True)
    suspect = ImageSet(images, np.where(poisoned.truth.mask, 1, data.labels), data.classes)
    model = built(folder).train()
    before = {name: value.clone() for name, value in model.state_dict().items()}
    recipe = replace(RECIPES["text"], epochs=20, batch_size=16, lr=0.01)
    fit(model, suspect, recipe, seed=0, what="test")
    model.eval()
    triggered = triggered_of(data, wanted.policy, poisoned.triggers[0]).overlay.images
    with torch.no_grad():
        clean = model(to_float(data.tensor(), torch.device("cpu"))).argmax(1).numpy()
        stamped = model(to_float(torch.from_numpy(triggered).permute(0, 3, 1, 2), torch.device("cpu"))).argmax(1)
    assert (clean == data.labels).mean() > 0.95
    assert (stamped == 1).double().mean() > 0.9
    # All weights were trained, and the table was not.
    changed = {name for name, value in model.state_dict().items() if not torch.equal(value, before[name])}
    assert set(before) - changed == {"backbone.body.table"}
    reserve = texts_of(40)
    for name, own in {"ac": {}, "ss": {}, "onion": {}, "strip_text": {"overlays": 8}}.items():
        asked = replace(
            suspect_of(model, suspect, reserve),
            features=features_of(model, suspect),
            reserve_features=features_of(model, reserve),
        )
        scores = DETECTORS[name].score(asked, **own)
        assert scores.values.shape == (48,), name
        assert np.isfinite(scores.values).all(), name


# What is refused.


def edited(name: str, **changes: Any) -> Callable[[Path], object]:
    """A change of a JSON file."""

    def change(folder: Path) -> None:
        path = folder / name
        about = json.loads(path.read_text()) if path.is_file() else {}
        path.write_text(json.dumps({**about, **changes}))

    return change


def without(*names: str) -> Callable[[Path], object]:
    return lambda folder: [(folder / name).unlink() for name in names]


def as_pickle(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")


def weights(change: Callable[[dict[str, torch.Tensor]], object]) -> Callable[[Path], object]:
    """A change of the weights."""

    def changed(folder: Path) -> None:
        from safetensors.torch import load_file

        tensors = load_file(folder / "model.safetensors")
        change(tensors)
        save_weights(tensors, folder / "model.safetensors")

    return changed


def longer(folder: Path) -> None:
    with (folder / "vocab.txt").open("a") as file:
        file.write("more\n")


WRONG: dict[str, tuple[Callable[[Path], object], str]] = {
    "no_config": (without("config.json"), r"config\.json: no such file, allowed: an encoder as transformers saves it"),
    "family": (
        edited("config.json", model_type="gpt2"),
        r"config\.json: model_type: 'gpt2' found, allowed: bert, roberta, distilbert",
    ),
    "decoder": (edited("config.json", is_decoder=True), r"config\.json: is_decoder: True found, allowed: False"),
    "places": (
        edited("config.json", position_embedding_type="relative_key"),
        r"position_embedding_type: 'relative_key' found, allowed: 'absolute'",
    ),
    "sizes": (
        edited("config.json", hidden_size="16"),
        r"config\.json: hidden_size: '16' given; input should be a valid int",
    ),
    "padding": (
        edited("config.json", pad_token_id=3),
        r"config\.json: pad_token_id: 3 given, allowed: its tokenizer's, 0",
    ),
    "no_weights": (without("model.safetensors"), r"model\.safetensors: no such file, allowed: all weights in it"),
    "pickle": (
        as_pickle,
        r"pytorch_model\.bin: weights as a pickle, which runs code when it is read; allowed: model\.saf",
    ),
    "not_finite": (
        weights(lambda tensors: tensors["encoder.layer.0.output.dense.bias"].fill_(np.nan)),
        r"encoder\.layer\.0\.output\.dense\.bias has values that are not finite",
    ),
    "lacking": (
        weights(lambda tensors: tensors.pop("encoder.layer.1.output.dense.bias")),
        r"not the weights of the bert that config\.json describes: encoder\.layer\.1\.output\.dense\.bias is absent",
    ),
    "other_sizes": (
        edited("config.json", intermediate_size=48),
        r"intermediate\.dense\.weight is \(32, 16\), the encoder has",
    ),
    "no_words": (without("vocab.txt"), r"tokenizer\.json: no such file, nor vocab\.txt, allowed: a tokenizer"),
    "more_words": (longer, r"a tokenizer of 41 sub-words for an encoder with vectors of 40, allowed: at most as many"),
    "tokenizer": (
        edited("tokenizer_config.json", tokenizer_class="T5Tokenizer"),
        r"tokenizer_config\.json: tokenizer_class: 'T5Tokenizer' found, allowed: BertTokenizer",
    ),
    "unreadable": (
        lambda folder: (folder / "tokenizer.json").write_text("{}"),
        r"not readable as the tokenizer of a bert \(",
    ),
}


@pytest.mark.parametrize("name", WRONG)
def test_a_folder_that_is_not_whole_is_one_line(own: Path, name: str) -> None:
    change, message = WRONG[name]
    change(own)
    with pytest.raises(UserError, match=message) as caught:
        built(own)
    assert "\n" not in str(caught.value)
    assert str(own) in str(caught.value)


def test_no_code_of_a_models_own_is_run(own: Path) -> None:
    (own / "mine.py").write_text(f"open({str(own / 'ran')!r}, 'w')\nTokenizer = Model = Config = None\n")
    edited("config.json", auto_map={"AutoConfig": "mine.Config", "AutoModel": "mine.Model"})(own)
    names = {"AutoTokenizer": ["mine.Tokenizer", "mine.Tokenizer"]}
    edited("tokenizer_config.json", auto_map=names, tokenizer_class="BertTokenizer")(own)
    expected = [*number("fi", "##lm"), -1]
    assert table(built(own, subwords=3))[WORDS.index("film")] == expected
    assert not (own / "ran").exists()


def test_a_model_with_a_head_and_old_names_is_read(own: Path) -> None:
    expected = built(own).state_dict()
    path = own / "model.safetensors"

    def change(tensors: dict[str, torch.Tensor]) -> None:
        old = {
            f"bert.{name.replace('LayerNorm.weight', 'LayerNorm.gamma').replace('LayerNorm.bias', 'LayerNorm.beta')}": value
            for name, value in tensors.items()
        }
        old |= {"bert.embeddings.position_ids": torch.arange(24)[None], "cls.predictions.bias": torch.zeros(40)}
        tensors.clear()
        tensors.update(old)

    before = sha256_file(path)
    weights(change)(own)
    assert sha256_file(path) != before
    found = built(own).state_dict()
    assert all(torch.equal(found[name], value) for name, value in expected.items())


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"pretrained": None}, r"pretrained: nothing given, allowed with text_encoder: a folder, or OWNER/NAME"),
        ({"pretrained": "nowhere"}, r"pretrained: 'nowhere' given, allowed: a folder, or OWNER/NAME of a repository"),
        ({"pretrained": "a/b"}, r"revision: None given for a/b, allowed: the 40 hexadecimal digits"),
        (
            {"pretrained": "a/b", "revision": 40 * "a"},
            r"pretrained: 'a/b' given, which is not on this machine; allowed: after `hf download a/b --revision a{40} --incl",
        ),
        ({"tokens": 9}, r"tokens: 9 given, allowed with pretrained: null"),
        ({"encoder": {}}, r"encoder: \{\} given, allowed with pretrained: null"),
        ({"vocabulary": None}, r"vocabulary: nothing given, allowed with pretrained: the words by their ids"),
        ({"subwords": 0}, r"subwords: 0 given; input should be greater than or equal to 1"),
        ({"width": 16}, r"width: unknown key, allowed: pretrained, revision, subwords"),
        ({"channels": 3}, r"name: text_encoder given for images of 3 channels, allowed: for texts"),
    ],
)
def test_arguments_that_do_not_go_together(
    folder: Path, arguments: dict[str, Any], message: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    about: dict[str, Any] = {"pretrained": str(folder), "image_size": (1, 6), "channels": 2, "vocabulary": WORDS}
    with pytest.raises(ParameterError, match=message):
        models.build("text_encoder", num_classes=2, **{**about, **arguments})


def test_without_transformers_one_line_says_what_to_install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(text_encoder, "find_spec", lambda name: None)
    with pytest.raises(
        ParameterError, match=r"transformers is not installed; allowed: `pip install '\.\[text\]'` first"
    ):
        built(folder)


# The stages.


@pytest.fixture
def params(folder: Path, tmp_path: Path) -> dict[str, Any]:
    reviews = tmp_path / "reviews.csv"
    reviews.write_text("text,label\na,1\nb,0\n")
    network = {"model.name": "text_encoder", "model.width": None, "model.pretrained": str(folder)}
    return given({**TEXT, "data.path": str(reviews), **network})


def test_parameters_of_a_run(params: dict[str, Any]) -> None:
    import check_params

    check_params.check_all(params)
    params["model"]["pretrained"] = None
    with pytest.raises(UserError, match=r"^params\.yaml: model\.pretrained: nothing given, allowed with text_encoder"):
        check_params.check_all(params)


def test_a_stage_builds_it_for_the_words_of_the_base_data_set(
    params: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        training, "read_vocabulary", lambda base: (*SPECIAL, "film", "bad") if base == training.BASE else ()
    )
    data = ImageSet(as_images(ids("a film")), np.zeros(1, np.int64), ("bad", "good"))
    model = training.fresh_model(training.network_of(params), data, seed=0)
    assert [row[:2] for row in table(model)[2:]] == [number("fi", "##lm"), [*number("bad"), -1]]


def test_other_weights_in_the_same_folder_train_again(params: dict[str, Any], own: Path) -> None:
    def digests() -> dict[str, str]:
        params["model"]["pretrained"] = str(own)
        stage_code._digest_of_weights.cache_clear()
        return {stage: about["pretrained"] for stage, about in stage_code._pretrained(params).items()}

    before = digests()
    assert {"train_backdoored", "train_clean"} <= set(before)
    assert len(set(before.values())) == 1
    weights(lambda tensors: tensors["embeddings.word_embeddings.weight"].mul_(2))(own)
    assert not set(digests().values()) & set(before.values())
    params["model"]["pretrained"] = None
    assert stage_code._pretrained(params) == {}
