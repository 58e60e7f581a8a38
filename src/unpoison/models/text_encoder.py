"""A pretrained encoder of transformers over the sub-words of a text: BERT, DistilBERT or RoBERTa, with a linear layer on top.

Devlin et al., "BERT" (NAACL 2019, sec. 3); Sanh et al., "DistilBERT" (2019, sec. 3); Liu et al., "RoBERTa" (2019, sec. 3).

A sample stays a row of word ids. Of each word of the vocabulary a table has the ids of its sub-words by the encoder's own
tokenizer; it is made once, when the network is built for a data set, and is kept with the weights. So triggers, detectors and
stored sets know nothing of sub-words, and a checkpoint needs neither the tokenizer nor the folder that the weights came from.

What differs from fine-tuning on a text as it was written: words come in lower case and with a space before each, marks too,
as that is what samples hold; a word that the vocabulary lacks is the tokenizer's unknown one, though it may know its parts;
sub-words of a word beyond the first `subwords` are left out. The features are the average over the sub-words and not the token
for the class: that token was trained for BERT's next sentence alone, and every other network for texts averages as well, which
the map of words relies on. What pools BERT's class token is left out with it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from importlib.util import find_spec
from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from annotated_types import Ge, Gt, Le, Lt
from torch import Tensor, nn

from ..core.errors import ParameterError, UserError, file_of, keys_of, one_line
from ..core.files import read_json
from ..core.hub import folder_of
from ..core.hyperparameters import Whole, check
from ..core.weights import Weights, differences, said_of, shapes_of
from ..data.texts import UNKNOWN
from .classifier import Backbone
from .words import Tokens, check_channels, ids_in, text_backbone

CONFIG, WEIGHTS, TOKENIZER = "config.json", "model.safetensors", "tokenizer_config.json"
FILES = (CONFIG, WEIGHTS, TOKENIZER, "tokenizer.json", "vocab.txt", "vocab.json", "merges.txt")
"""What is needed of a model's files, as far as it has them."""
ENDS = 2
"""Special tokens of a text: in front of its sub-words, and behind them."""
_NONE = -1
"""In the table: no sub-word."""
_KEYS: dict[str, dict[str, str]] = {
    "bert": {},
    "roberta": {},
    "distilbert": {
        "hidden_size": "dim",
        "num_hidden_layers": "n_layers",
        "num_attention_heads": "n_heads",
        "intermediate_size": "hidden_dim",
        "hidden_act": "activation",
        "hidden_dropout_prob": "dropout",
        "attention_probs_dropout_prob": "attention_dropout",
    },
}
"""Families of encoders, and what each calls a field of `Encoder` otherwise."""
_LACKING = {"distilbert": ("type_vocab_size", "layer_norm_eps")}
"""Fields that a family has no setting of."""
_OTHERWISE = {"is_decoder": False, "add_cross_attention": False, "position_embedding_type": "absolute"}
"""Settings of a configuration that make another network of it, and their only value here."""
_TOKENIZERS = {
    *(f"{name}Tokenizer{fast}" for name in ("Bert", "DistilBert", "Roberta") for fast in ("", "Fast")),
    *("PreTrainedTokenizerFast", "TokenizersBackend"),
}
_Size = Annotated[int, Ge(1), Le(1 << 14)]
_Dropout = Annotated[float, Ge(0), Lt(1)]


@dataclass(frozen=True, kw_only=True)
class Encoder:
    """What rebuilds an encoder without its weights: numbers of its configuration, by the names that BERT's has for them.

    Attributes:
        family: kind of encoder.
        vocab_size: sub-words that have a vector.
        hidden_size: width, the number of features.
        num_hidden_layers: blocks.
        num_attention_heads: heads of attention, which divide the width.
        intermediate_size: width between a block's two linear layers.
        max_position_embeddings: places that have a vector; RoBERTa counts them from behind `pad_token_id`.
        hidden_act: between the two.
        hidden_dropout_prob: share of activations that training leaves out.
        attention_probs_dropout_prob: the same of attention.
        type_vocab_size: kinds of segments, of which a text is the first.
        layer_norm_eps: added to layer norm's variance.
        pad_token_id: id of what fills up a batch.
        cls_token_id: id in front of a text.
        sep_token_id: id behind it.
    """

    family: Literal["bert", "distilbert", "roberta"]
    vocab_size: Annotated[int, Ge(4), Le(1 << 20)]
    hidden_size: _Size
    num_hidden_layers: Annotated[int, Ge(1), Le(48)]
    num_attention_heads: _Size
    intermediate_size: _Size
    max_position_embeddings: _Size
    hidden_act: Literal["gelu", "gelu_new", "relu", "silu"]
    hidden_dropout_prob: _Dropout
    attention_probs_dropout_prob: _Dropout
    type_vocab_size: _Size = 1
    layer_norm_eps: Annotated[float, Gt(0), Lt(1)] = 1e-12
    pad_token_id: Whole
    cls_token_id: Whole
    sep_token_id: Whole

    @property
    def room(self) -> int:
        """Sub-words of a text that have a place beside the special tokens."""
        return self.max_position_embeddings - ENDS - (self.pad_token_id + 1 if self.family == "roberta" else 0)


def text_encoder(
    channels: int,
    vocabulary: Sequence[str] | None,
    *,
    pretrained: str | None = None,
    revision: str | None = None,
    subwords: Annotated[int, Ge(1), Le(64)] = 8,
    tokens: Tokens | None = None,
    encoder: dict[str, Any] | None = None,
) -> tuple[Backbone, int]:
    """The network without its head, and the number of its features: the encoder's width.

    Args:
        channels: channels of the samples, 2 of texts.
        vocabulary: words by their ids; None for a network that is rebuilt, whose table is read with its weights.
        pretrained: a folder as `save_pretrained` of transformers writes it, or OWNER/NAME of a repository of the Hugging Face hub
            whose files are in its cache; None: rebuilt by the two below, with random weights.
        revision: of a repository the commit, 40 hexadecimal digits.
        subwords: most sub-words of a word, its first ones.
        tokens: of a network that is rebuilt the ids in its table.
        encoder: of a network that is rebuilt the fields of `Encoder`.

    Raises:
        ParameterError: transformers is not installed; what does not go together; no such folder or repository; fields that
            no encoder has.
        UserError: a file is missing, damaged or not the encoder's, an encoder of another family.
    """
    check_channels("text_encoder", channels)
    if find_spec("transformers") is None:
        raise ParameterError(
            "name: text_encoder given, for which transformers is not installed; allowed: `pip install '.[text]'` first"
        )
    if pretrained is None:
        if vocabulary is not None or encoder is None or tokens is None:
            raise ParameterError(
                "pretrained: nothing given, allowed with text_encoder: a folder, or OWNER/NAME of a repository on the hub"
            )
        with keys_of("encoder"):
            about = _checked(encoder)
        return _backbone(_Encoder(about, _body(about), torch.full((tokens, subwords), _NONE))), about.hidden_size
    for key, value in {"encoder": encoder, "tokens": tokens}.items():
        if value is not None:
            raise ParameterError(f"{key}: {value!r} given, allowed with pretrained: null, it says so itself")
    if vocabulary is None:
        raise ParameterError("vocabulary: nothing given, allowed with pretrained: the words by their ids")
    folder = folder_of(pretrained, revision, FILES, key="pretrained")
    about = _described(folder)
    tokenizer = _tokenizer(folder, about.family)
    about = _with_ends(about, tokenizer, folder)
    body = _body(about)
    _put_weights(body, folder / WEIGHTS, about)
    return _backbone(_Encoder(about, body, table_of(vocabulary, tokenizer, subwords))), about.hidden_size


def table_of(vocabulary: Sequence[str], tokenizer: Any, subwords: int) -> Tensor:
    """Ids of each word's sub-words, its first ones, int64 [words, subwords]: -1 behind them, and all along for the padding.

    Args:
        vocabulary: words by their ids, `data.texts.SPECIAL` first.
        tokenizer: of transformers.
        subwords: most sub-words of a word.
    """
    # The space is what a word within a text has in front of it; to byte-level tokenizers it is a part of the sub-word.
    cut = tokenizer([f" {word}" for word in vocabulary[UNKNOWN + 1 :]], add_special_tokens=False)["input_ids"]
    # One of which a tokenizer keeps nothing, an invisible character for one, is a word all the same.
    rows = [[], [tokenizer.unk_token_id], *(ids or [tokenizer.unk_token_id] for ids in cut)]
    return torch.tensor([[*ids[:subwords], *[_NONE] * (subwords - len(ids))] for ids in rows], dtype=torch.int64)


class _Encoder(nn.Module):
    """From bytes of word ids to the map of words [n, width, 1, length], whose average is that of the text's sub-words."""

    table: Tensor

    def __init__(self, about: Encoder, encoder: nn.Module, table: Tensor) -> None:
        super().__init__()
        self.about = about
        self.encoder = encoder
        self.register_buffer("table", table)

    def forward(self, images: Tensor) -> Tensor:
        ids = ids_in(images, len(self.table))
        given = self.table[ids].flatten(1)
        # A table from elsewhere may hold what the encoder has no vector of.
        there = (given >= 0) & (given < self.about.vocab_size)
        count = there.sum(1).clamp(max=self.about.room)
        most = int(count.max())
        # Those that are there first, in their order, so that nothing stands between a text's sub-words.
        order = (~there).int().argsort(dim=1, stable=True)[:, :most]
        place = torch.arange(most + ENDS, device=ids.device)
        real = place[:most] < count[:, None]
        within = torch.where(real, given.gather(1, order), self.about.pad_token_id)
        first = within.new_full((len(ids), 1), self.about.cls_token_id)
        last = within.new_full((len(ids), 1), self.about.pad_token_id)
        end = count[:, None] + 1
        sequence = torch.where(place == end, self.about.sep_token_id, torch.cat([first, within, last], 1))
        found = self.encoder(input_ids=sequence, attention_mask=(place <= end).long()).last_hidden_state
        # Each word gets its sub-words' vectors, as large as makes the average over all words that over the sub-words.
        word = torch.arange(ids.shape[1], device=ids.device)[:, None]
        own = ((order // self.table.shape[1])[:, None] == word) & real[:, None]
        share = own * (ids.shape[1] / count.clamp(min=1))[:, None, None]
        return (share.to(found.dtype) @ found[:, 1:-1]).transpose(1, 2)[:, :, None]


def _backbone(body: _Encoder) -> Backbone:
    backbone = text_backbone(body)
    tokens, subwords = body.table.shape
    backbone.rebuilt_by = {"subwords": subwords, "tokens": tokens, "encoder": asdict(body.about)}
    backbone.given = ("body.table",)
    return backbone


def _body(about: Encoder) -> Any:
    """The encoder with random weights."""
    from transformers import AutoConfig, AutoModel

    values = asdict(about)
    given = {_KEYS[about.family].get(key, key): values[key] for key in _keys(about.family)}
    # Every value was looked at: a configuration from elsewhere could name code to fetch and run.
    config = AutoConfig.for_model(about.family, **given)
    encoder: Any = AutoModel.from_config(config, attn_implementation="sdpa")
    # Of the token for the class, which the features do not use: its weights would have no gradient.
    if hasattr(encoder, "pooler"):
        encoder.pooler = None
    return encoder


def _keys(family: str) -> list[str]:
    """The fields of `Encoder` that a family's configuration has."""
    apart = ("family", "cls_token_id", "sep_token_id", *_LACKING.get(family, ()))
    return [field.name for field in fields(Encoder) if field.name not in apart]


def _checked(values: Mapping[str, Any]) -> Encoder:
    """Raises ParameterError for fields that are missing, wrong, or do not go together."""
    about = Encoder(**check(values, Encoder))
    if about.hidden_size % about.num_attention_heads:
        raise ParameterError(
            f"hidden_size: {about.hidden_size} given, allowed: a multiple of num_attention_heads, {about.num_attention_heads}"
        )
    for key in ("pad_token_id", "cls_token_id", "sep_token_id"):
        if (given := getattr(about, key)) >= about.vocab_size:
            raise ParameterError(f"{key}: {given} given, allowed: below vocab_size, {about.vocab_size}")
    if about.room < 1:
        raise ParameterError(
            f"max_position_embeddings: {about.max_position_embeddings} given, allowed: {ENDS} special tokens and a sub-word"
        )
    return about


def _described(folder: Path) -> Encoder:
    """The encoder of a configuration beside its weights, its two special tokens not known yet. Raises UserError for any other."""
    path = folder / CONFIG
    if not path.is_file():
        raise UserError(f"{path}: no such file, allowed: an encoder as transformers saves it")
    settings = read_json(path)
    if (family := settings.get("model_type")) not in _KEYS:
        raise UserError(f"{path}: model_type: {family!r} found, allowed: {', '.join(_KEYS)}")
    for key, allowed in _OTHERWISE.items():
        if (given := settings.get(key, allowed)) not in (allowed, None):
            raise UserError(f"{path}: {key}: {given!r} found, allowed: {allowed!r}")
    if not (folder / WEIGHTS).is_file():
        for pickled in sorted(folder.glob("*.bin")):
            raise UserError(f"{pickled}: weights as a pickle, which runs code when it is read; allowed: {WEIGHTS}")
        raise UserError(f"{folder / WEIGHTS}: no such file, allowed: all weights in it")
    from transformers import AutoConfig

    defaults, values = AutoConfig.for_model(family), dict[str, Any](family=family, cls_token_id=0, sep_token_id=0)
    for key in _keys(family):
        name = _KEYS[family].get(key, key)
        values[key] = settings.get(name, getattr(defaults, name))
    with file_of(path):
        return _checked(values)


def _tokenizer(folder: Path, family: str) -> Any:
    """The encoder's own tokenizer. Raises UserError where it is missing, of another kind, or cannot be read."""
    path, words = folder / TOKENIZER, ["vocab.json", "merges.txt"] if family == "roberta" else ["vocab.txt"]
    # Without its words transformers makes a tokenizer to which every word is unknown, and says nothing.
    if not (folder / "tokenizer.json").is_file() and not all((folder / name).is_file() for name in words):
        raise UserError(f"{folder / 'tokenizer.json'}: no such file, nor {' and '.join(words)}, allowed: a tokenizer")
    kind = read_json(path).get("tokenizer_class") if path.is_file() else None
    if kind is not None and kind not in _TOKENIZERS:
        raise UserError(f"{path}: tokenizer_class: {kind!r} found, allowed: {', '.join(sorted(_TOKENIZERS))}")
    from transformers import AutoConfig, AutoTokenizer

    try:
        # With a configuration that says the family alone: what else the folder's says is not for a tokenizer.
        return AutoTokenizer.from_pretrained(
            folder, config=AutoConfig.for_model(family), local_files_only=True, trust_remote_code=False
        )
    except MemoryError:
        raise
    except Exception as error:
        said = f"{type(error).__name__}: {one_line(str(error))[:300]}"
        raise UserError(f"{folder}: not readable as the tokenizer of a {family} ({said})") from error


def _with_ends(about: Encoder, tokenizer: Any, folder: Path) -> Encoder:
    """The encoder with its tokenizer's special tokens. Raises UserError for a tokenizer that is another encoder's."""
    for key in ("cls", "sep", "pad", "unk"):
        if getattr(tokenizer, f"{key}_token_id") is None:
            raise UserError(f"{folder}: a tokenizer without {key}_token, allowed: one of an encoder, which has it")
    if len(tokenizer) > about.vocab_size:
        raise UserError(
            f"{folder}: a tokenizer of {len(tokenizer)} sub-words for an encoder with vectors of {about.vocab_size}, allowed: at "
            "most as many"
        )
    if tokenizer.pad_token_id != about.pad_token_id:
        raise UserError(
            f"{folder / CONFIG}: pad_token_id: {about.pad_token_id} given, allowed: its tokenizer's, {tokenizer.pad_token_id}"
        )
    with file_of(folder / CONFIG):
        ends = {"cls_token_id": tokenizer.cls_token_id, "sep_token_id": tokenizer.sep_token_id}
        return _checked({**asdict(about), **ends})


def _put_weights(encoder: nn.Module, path: Path, about: Encoder) -> None:
    """Read an encoder's weights, of a model with a head on top as well. Raises UserError where they are not all of it."""
    given, prefix = Weights(path).read(), f"{about.family}."
    if any(name.startswith(prefix) for name in given):
        given = {name.removeprefix(prefix): value for name, value in given.items() if name.startswith(prefix)}
    # The first models call the two parts of layer norm otherwise, and keep the numbers of the places.
    tensors = {
        name.replace("LayerNorm.gamma", "LayerNorm.weight").replace("LayerNorm.beta", "LayerNorm.bias"): value
        for name, value in given.items()
        if not name.startswith("pooler.") and name != "embeddings.position_ids"
    }
    shapes, expected = shapes_of(tensors), shapes_of(encoder.state_dict())
    if wrong := differences(shapes, expected):
        raise UserError(
            f"{path}: not the weights of the {about.family} that {CONFIG} describes: {wrong[0]} is "
            f"{said_of(wrong[0], shapes, 'absent')}, the encoder has {said_of(wrong[0], expected, 'none')} "
            f"({len(wrong)} of {len(expected)} tensors differ)"
        )
    encoder.load_state_dict(tensors)
