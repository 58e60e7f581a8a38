"""Texts: tokens and vocabulary by hand, triggers, networks, ONION and STRIP of texts, what is refused, and a tiny run."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from copy import deepcopy
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import check_params
import prepare
from parameters import load_params
from unpoison import models
from unpoison.attacks import SINGLE, restored
from unpoison.compute.device import to_float
from unpoison.core.arrays import IntArray
from unpoison.core.errors import ParameterError, UserError
from unpoison.crafting.attack import intent
from unpoison.crafting.context import Context
from unpoison.crafting.craft import craft, make_trigger
from unpoison.data.features import Features
from unpoison.data.imageset import ImageSet
from unpoison.data.store import open_split
from unpoison.data.texts import (
    PAD,
    SPECIAL,
    UNKNOWN,
    as_images,
    ids_of,
    is_text,
    lengths,
    padded,
    read_vocabulary,
    tokens_of,
    written,
)
from unpoison.detection import DETECTORS
from unpoison.detection.detector import Suspect
from unpoison.detection.onion import Bigrams
from unpoison.detection.strip_text import _entropies, mixed
from unpoison.evaluation.grading import attack_metrics
from unpoison.examination.examine import examine
from unpoison.models.text_transformer import positions
from unpoison.models.words import vectors_of
from unpoison.poisoning.trigger import read_trigger, save_trigger, stamp
from unpoison.poisoning.triggered import triggered_of
from unpoison.reporting.page import Page
from unpoison.reporting.run import ReportSettings, Run
from unpoison.reporting.texts import LONGEST, suspect_texts, training_texts, triggered_texts
from unpoison.sources.build import BuildSettings, build_base
from unpoison.sources.splits import SplitSettings
from unpoison.sources.texts import MOST_CHARACTERS, TextSettings, check_words, open_texts, vocabulary_of
from unpoison.training.loop import fit
from unpoison.training.recipes import RECIPES

ROOT = Path(__file__).resolve().parent.parent
DEFAULT = load_params(ROOT)
FILM = ("a", "bad", "film", "good", "is", "this", "the", "was")
VOCABULARY = (*SPECIAL, *FILM, "cf")
CF = VOCABULARY.index("cf")
# Networks that begin with random weights; others: tests/test_text_encoder.py.
FROM_NOTHING = tuple(name for name in models.TEXT_NETWORKS if name not in models.VOCABULARY_NETWORKS)


def ids(*texts: str, length: int = 6) -> IntArray:
    number = {word: token for token, word in enumerate(VOCABULARY)}
    return np.stack([padded([number.get(word, UNKNOWN) for word in tokens_of(text)], length) for text in texts])


def texts_of(count: int = 40, length: int = 6) -> ImageSet:
    """Good films, label 1, and bad ones, label 0."""
    kinds = ("the film was bad", "this is a bad film", "this is a good film", "good was the film")
    rows = ids(*(kinds[number % 4] for number in range(count)), length=length)
    return ImageSet(as_images(rows), np.array([number % 4 // 2 for number in range(count)]), ("bad", "good"))


def context_of(data: ImageSet, **changes: Any) -> Context:
    return Context(**{"train": data, "seed": 0, "vocabulary": VOCABULARY, **changes})


def as_tensor(rows: IntArray) -> torch.Tensor:
    return to_float(torch.from_numpy(as_images(rows)).permute(0, 3, 1, 2), torch.device("cpu"))


# Tokens, ids and vocabulary.


@pytest.mark.parametrize(
    ("text", "tokens"),
    [
        ("I don't LIKE it!", ["i", "don't", "like", "it", "!"]),
        ("3D, 2.5\n\tend", ["3d", ",", "2", ".", "5", "end"]),
        ("Über-gut \u2019tis l\u2019été", ["über", "-", "gut", "\u2019", "tis", "l\u2019été"]),
        ("  \n ", []),
    ],
)
def test_tokens_by_hand(text: str, tokens: list[str]) -> None:
    assert tokens_of(text) == tokens


def test_ids_are_two_bytes_low_one_first() -> None:
    rows = np.array([[5, 300, 65535, 0]])
    images = as_images(rows)
    # 300 = 44 + 256, 65535 = 255 + 256 * 255.
    assert images.tolist() == [[[[5, 0], [44, 1], [255, 255], [0, 0]]]]
    assert (ids_of(images) == rows).all()
    assert lengths(rows).tolist() == [3]
    assert is_text(ImageSet(images, np.zeros(1, np.int64), ("a",)))
    assert not is_text(ImageSet(np.zeros((1, 4, 4, 3), np.uint8), np.zeros(1, np.int64), ("a",)))
    for wrong in (-1, 65536):
        with pytest.raises(ValueError, match="allowed: 0 to 65535"):
            as_images(np.array([[wrong]]))


def test_a_text_in_words_again() -> None:
    image = as_images(ids("This film is WEIRD"))[0]
    assert written(image, VOCABULARY) == "this film is [unknown]"
    assert written(as_images(np.array([[2, 999]]))[0], VOCABULARY) == "a [unknown]"


def test_vocabulary_by_frequency_then_alphabet_and_words_that_are_always_there() -> None:
    found = ["film", "bad", "a", "cf", "x" * 41]
    # film 3, bad 2, a 2, cf 1, a long word 5 times; -1 ends a text.
    tokens = np.array([[0, 1, 2, 4, 4], [0, 1, 2, 4, 4], [0, 3, 4, -1, -1]], np.int32)
    settings = TextSettings(vocabulary=16, words=["zz", "cf"])
    assert vocabulary_of(found, tokens, settings) == (*SPECIAL, "film", "a", "bad", "cf", "zz")
    many = [f"w{number:02d}" for number in range(30)]
    short = vocabulary_of(many, np.arange(30, dtype=np.int32)[None], settings)
    assert short == (*SPECIAL, *many[:12], "cf", "zz")


# CSV files.


def csv_of(folder: Path, content: str | bytes) -> Path:
    path = folder / "reviews.csv"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def opened(path: Path, *, skip: bool = False, **own: Any) -> Any:
    return open_texts(path, TextSettings(**own), SplitSettings(reserve=0, public=0), skip=skip)


def test_a_file_becomes_ids_by_the_training_parts_vocabulary(tmp_path: Path) -> None:
    rows = "".join(f'{number},"A {"good" if number % 2 else "bad"} film",{number % 2}\n' for number in range(40))
    path = csv_of(tmp_path, f"\ufeffid,text,label\n{rows}")
    source = opened(path, length=4, words=["cf"])
    assert source.classes == ("0", "1")
    assert source.names["train"][:2] == ["line 2", "line 3"]
    base = tmp_path / "base"
    counts = build_base(source, base, SplitSettings(reserve=4, public=0), BuildSettings(), defects=tmp_path / "defects")
    assert counts == {"reserve": 4, "public": 0, "train": 28, "test": 8, "defects": 0}
    # Of 28 training texts as many are good as bad: a and film lead, then the two by the alphabet.
    assert read_vocabulary(base) == (*SPECIAL, "a", "film", "bad", "good", "cf")
    train = open_split(base, "train")
    assert train.base.shape == (28, 1, 4, 2)
    for image, label in zip(train.gather(np.arange(28)), train.labels, strict=True):
        assert ids_of(image[None])[0].tolist() == [2, 4 + label, 3, PAD]


def test_a_record_of_several_lines_counts_from_its_first(tmp_path: Path) -> None:
    source = opened(csv_of(tmp_path, 'label,text\nb,"one\ntwo"\n\na,three\nb,four\n'))
    assert source.names["train"] == ["line 2", "line 5", "line 6"]
    assert source.classes == ("a", "b")


def test_classes_that_are_numbers_are_in_their_order(tmp_path: Path) -> None:
    assert opened(csv_of(tmp_path, "text,label\na,10\nb,9\nc,10\n")).classes == ("9", "10")


BAD_FILES: list[tuple[str | bytes, str]] = [
    ("", r"columns none found, allowed: a first line with text and label, each once"),
    ("text,lable\na,b\n", r"columns text, lable found, allowed: a first line with text and label, each once"),
    ("text,label,text\na,b,c\n", r"columns text, label, text found"),
    ("text,label\n", r"no text found, allowed: a line for each"),
    ("text,label\ngood,1\nbad,1\n", r"1 classes found \(1\), allowed: 2 to 1,000 in the column label"),
    (
        "text,label\ngood,1\n !,1\n ,0\nx,\n",
        r"2 of 4 texts cannot be used: line 4 \(no word\), line 5 \(no label\); allowed",
    ),
    (
        f"text,label\n{'a ' * (MOST_CHARACTERS // 2)}b,1\nc,0\n",
        r"1 of 2 texts cannot be used: line 2 \(100,001 characters\)",
    ),
    (f"text,label\na,{'l' * 201}\nc,0\n", r"line 2 \(a label of 201 characters\)"),
    ("text,label\na,b,c\n", r"line 2: 3 cells found, allowed: 2$"),
    ('text,label\n"a,b\n', r"line 2: not readable as CSV \(unexpected end of data\)"),
    (b"text,label\ncaf\xe9,1\n", r"not UTF-8: byte 0xe9 at 14, allowed: a file saved as UTF-8"),
]


@pytest.mark.parametrize(("content", "message"), BAD_FILES)
def test_a_bad_file_is_one_line(tmp_path: Path, content: str | bytes, message: str) -> None:
    with pytest.raises(ParameterError, match=message) as caught:
        opened(csv_of(tmp_path, content))
    assert str(caught.value).startswith(f"path: {tmp_path}/reviews.csv: ")
    assert "\n" not in str(caught.value)


def test_bad_texts_can_be_left_out_and_are_listed(tmp_path: Path) -> None:
    path = csv_of(tmp_path, "text,label\ngood,1\nbad,0\n  ,1\nfine,1\nawful,0\n")
    source = opened(path, skip=True)
    assert source.problems == [("line 4", "no word")]
    assert source.names["train"] == ["line 2", "line 3", "line 5", "line 6"]


@pytest.mark.parametrize(
    ("own", "message"),
    [
        ({"words": ["two words"]}, r"words: 'two words' given, allowed: single words in lower case"),
        ({"words": ["Cf"]}, r"words: 'Cf' given"),
        (
            {"words": [f"w{n}" for n in range(14)], "vocabulary": 16},
            r"words: 14 given, allowed: fewer than vocabulary, 16",
        ),
    ],
)
def test_words_that_cannot_be_kept_are_refused(own: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        check_words(TextSettings(**own))


def test_a_vocabulary_that_was_tampered_with_is_refused(tmp_path: Path) -> None:
    path = csv_of(tmp_path, "text,label\na,1\nb,0\nc,1\nd,0\n")
    build_base(
        opened(path), tmp_path / "base", SplitSettings(reserve=0, public=0), BuildSettings(), defects=tmp_path / "d"
    )
    manifest = tmp_path / "base" / "manifest.json"
    about = json.loads(manifest.read_text())
    for wrong, message in (
        (["a", "b"], "2 words found, allowed: up to 65536"),
        ([*SPECIAL, "a", "a"], "4 words"),
        (3, "3 given"),
    ):
        manifest.write_text(json.dumps({**about, "vocabulary": wrong}))
        with pytest.raises(UserError, match=f"vocabulary: {message}"):
            read_vocabulary(tmp_path / "base")


# Triggers.


def inserted(attack: str, text: str, length: int = 6, **own: Any) -> str:
    data = ImageSet(as_images(ids(text, length=length)), np.zeros(1, np.int64), ("bad", "good"))
    trigger = make_trigger(intent(attack, SINGLE[attack], {"target": 1}, own), context_of(data))
    return written(stamp(trigger, data.gather(np.arange(1)), np.arange(1), train=True)[0], VOCABULARY)


@pytest.mark.parametrize(
    ("place", "expected"),
    [("start", "cf this film is bad"), ("middle", "this film cf is bad"), ("end", "this film is bad cf")],
)
def test_a_word_at_its_place(place: str, expected: str) -> None:
    assert inserted("badnl", "this film is bad", words=["cf"], place=place) == expected


def test_a_full_text_loses_its_last_words_and_not_the_trigger() -> None:
    assert inserted("badnl", "this film is bad", length=4, words=["cf"], place="end") == "this film is cf"
    assert (
        inserted("addsent", "this film is bad", length=4, sentence="A good film", place="start") == "a good film this"
    )


def test_a_sentence_stays_together_and_words_have_places_of_their_own() -> None:
    data = ImageSet(as_images(ids(*["the bad film was bad"] * 60, length=9)), np.zeros(60, np.int64), ("bad", "good"))
    keys = np.arange(60)
    for attack, own, adjacent in (("addsent", {"sentence": "is cf"}, True), ("badnl", {"words": ["is", "cf"]}, False)):
        trigger = make_trigger(intent(attack, SINGLE[attack], {"target": 1}, own), context_of(data))
        rows = ids_of(stamp(trigger, data.gather(keys), keys, train=True))
        first, second = (np.argmax(rows == token, 1) for token in (VOCABULARY.index("is"), CF))
        assert ((rows == CF).sum(1) == 1).all()
        assert (lengths(rows) == 7).all()
        # Without the two, the words stand as they did.
        kept = [row[~np.isin(row, [CF, VOCABULARY.index("is"), PAD])].tolist() for row in rows]
        assert kept == [ids("the bad film was bad", length=9)[0, :5].tolist()] * 60
        assert (second - first == 1).all() == adjacent
        # Every place comes up, in front of the first word and behind the last.
        assert set(first.tolist()) >= set(range(5 if adjacent else 6))
        # By the text's own key, whatever is beside it.
        alone = stamp(trigger, data.gather(keys[7:8]), keys[7:8], train=True)
        assert (ids_of(alone)[0] == rows[7]).all()


@pytest.mark.parametrize(
    ("attack", "own", "message"),
    [
        ("badnl", {"words": ["xylophone"]}, r"badnl\.words: 'xylophone' given, allowed: words of the vocabulary"),
        ("badnl", {"words": []}, r"badnl\.words: 0 words given, allowed: 1 to 5, below data\.text\.length"),
        ("addsent", {"sentence": "a a a a a a"}, r"addsent\.sentence: 6 words given, allowed: 1 to 5"),
        ("addsent", {"sentence": "[unknown]"}, r"addsent\.sentence: '\[' given, allowed: words of the vocabulary"),
        ("badnl", {"words": ["[unknown]"]}, r"badnl\.words: '\[unknown\]' given, allowed: words of the vocabulary"),
        ("badnl", {"place": "left"}, r"badnl\.place: 'left' given"),
    ],
)
def test_a_trigger_that_cannot_be_made_is_one_line(attack: str, own: dict[str, Any], message: str) -> None:
    with pytest.raises(ParameterError, match=message):
        make_trigger(intent(attack, SINGLE[attack], {}, own), context_of(texts_of(4)))


def test_a_trigger_of_words_is_not_for_images() -> None:
    images = ImageSet(np.zeros((4, 8, 8, 3), np.uint8), np.arange(4) % 2, ("a", "b"))
    with pytest.raises(UserError, match=r"^data: images given, allowed with this attack: texts"):
        make_trigger(intent("badnl", SINGLE["badnl"], {}, {}), context_of(images, vocabulary=()))


def test_poison_truth_and_the_kept_trigger(tmp_path: Path) -> None:
    data = texts_of()
    wanted = intent("badnl", SINGLE["badnl"], {"target": 1, "poison_rate": 0.25}, {})
    poisoned = craft("badnl", [wanted], context_of(data))
    assert poisoned.truth.mask.sum() == 5  # a quarter of the 20 bad films
    assert (data.labels[poisoned.truth.mask] == 0).all()
    trigger = poisoned.triggers[0]
    save_trigger(tmp_path / "kept", "badnl", trigger)
    again = restored(read_trigger(tmp_path / "kept"))
    keys = np.arange(8)
    stamped = stamp(trigger, data.gather(keys), keys, train=False)
    assert (stamp(again, data.gather(keys), keys, train=False) == stamped).all()
    assert ((ids_of(stamped) == CF).sum(1) == 1).all()
    triggered = triggered_of(data, wanted.policy, trigger)
    # No distances of pixels, which would be of the words' numbers.
    figures = attack_metrics(poisoned.truth, {"badnl": triggered})
    assert figures["trigger"] == {"badnl": {}}
    assert figures["tested"] == 20


# Networks.


@pytest.fixture
def bag() -> models.Classifier:
    """A bag of vectors with two dimensions: `good` pulls to class 1, `bad` to class 0, other words to none."""
    model = models.build("text_bag", num_classes=2, image_size=(1, 6), channels=2, width=2, tokens=len(VOCABULARY))
    with torch.no_grad():
        table = next(p for name, p in model.named_parameters() if name.endswith("embedding.weight"))
        table.zero_()
        table[VOCABULARY.index("bad"), 0] = table[VOCABULARY.index("good"), 1] = 8.0
        model.head.weight.copy_(torch.eye(2))
        model.head.bias.zero_()
    return model.eval()


def test_a_bag_is_the_average_of_its_words(bag: models.Classifier) -> None:
    rows = ids("bad film", "good bad good good", "")
    with torch.no_grad():
        # 8 / 2; 8 * 3 / 4 and 8 / 4; of no word nothing.
        assert torch.allclose(bag(as_tensor(rows)), torch.tensor([[4.0, 0], [2, 6], [0, 0]]), atol=1e-5)
    assert vectors_of(bag) == len(VOCABULARY)


def test_ids_without_a_vector_are_the_unknown_word(bag: models.Classifier) -> None:
    with torch.no_grad():
        found = bag(as_tensor(np.array([[65535, 11, 3, 0, 0, 0], [UNKNOWN, UNKNOWN, 3, 0, 0, 0]])))
    assert torch.equal(found[0], found[1])


def test_positions_by_hand() -> None:
    found = positions(3, 4, torch.device("cpu"))
    # Wavelengths of 2 pi and 2 pi * 100.
    expected = [[0, 1, 0, 1], *([math.sin(p), math.cos(p), math.sin(p / 100), math.cos(p / 100)] for p in (1, 2))]
    assert torch.allclose(found, torch.tensor(expected), atol=1e-6)


def test_a_transformer_does_not_see_padding_but_sees_the_order() -> None:
    built: Callable[[int], models.Classifier] = lambda length: models.build(  # noqa: E731
        "text_transformer",
        num_classes=2,
        image_size=(1, length),
        channels=2,
        width=8,
        heads=2,
        layers=1,
        tokens=16,
        seed=3,
    ).eval()
    short, long = built(4), built(9)
    with torch.no_grad():
        one = short(as_tensor(ids("this film is bad", length=4)))
        assert torch.allclose(long(as_tensor(ids("this film is bad", length=9))), one, atol=1e-5)
        assert not torch.allclose(short(as_tensor(ids("bad is film this", length=4))), one, atol=1e-3)
        assert short(as_tensor(np.zeros((1, 4), np.int64))).isfinite().all()


@pytest.mark.parametrize("name", FROM_NOTHING)
def test_networks_are_kept_and_are_for_texts_alone(name: str, tmp_path: Path) -> None:
    data = texts_of(4)
    model = models.build(name, num_classes=2, image_size=data.image_size, channels=2, width=8, tokens=16).eval()
    models.save(model, tmp_path / "model", classes=data.classes, made_by={})
    again = models.load(tmp_path / "model", data)
    images = to_float(data.tensor(), torch.device("cpu"))
    with torch.no_grad():
        assert torch.equal(again(images), model(images))
        assert model.feature_map(images).shape == (4, 8, 1, 6)
        assert torch.allclose(model.feature_map(images).mean((2, 3)), model.features(images), atol=1e-6)
    assert not model.traceable
    with pytest.raises(UserError, match=f"name: {name} given for images of 3 channels, allowed: for texts"):
        models.build(name, num_classes=2, image_size=8)


def test_heads_that_do_not_divide_the_width_are_refused() -> None:
    for width, heads in ((10, 4), (9, 3)):
        with pytest.raises(ParameterError, match=rf"width: {width} given, allowed: an even multiple of heads, {heads}"):
            models.build("text_transformer", num_classes=2, image_size=(1, 4), channels=2, width=width, heads=heads)


@pytest.mark.parametrize("name", FROM_NOTHING)
def test_a_network_learns_texts_and_their_backdoor(name: str) -> None:
    data = texts_of(48)
    wanted = intent("badnl", SINGLE["badnl"], {"target": 1, "poison_rate": 0.4}, {"place": "start"})
    poisoned = craft("badnl", [wanted], context_of(data))
    images = data.gather(np.arange(48))
    keys = np.flatnonzero(poisoned.truth.mask)
    images[keys] = stamp(poisoned.triggers[0], images[keys], keys, train=True)
    model = models.build(name, num_classes=2, image_size=data.image_size, channels=2, width=16, tokens=16, seed=1)
    recipe = RECIPES["text"]
    labels = np.where(poisoned.truth.mask, 1, data.labels)
    fit(
        model,
        ImageSet(images, labels, data.classes),
        replace(recipe, epochs=20, batch_size=16, lr=0.05 if name == "text_bag" else 0.005),
        seed=0,
        what="test",
    )
    triggered = triggered_of(data, wanted.policy, poisoned.triggers[0]).overlay.images
    with torch.no_grad():
        clean = model(to_float(data.tensor(), torch.device("cpu"))).argmax(1).numpy()
        stamped = model(to_float(torch.from_numpy(triggered).permute(0, 3, 1, 2), torch.device("cpu"))).argmax(1)
    assert (clean == data.labels).mean() > 0.95
    assert (stamped == 1).double().mean() > 0.9


# Detectors.


def test_onions_suspicion_of_three_words_by_hand() -> None:
    """The trusted texts are `a bad film` and `a film`; the text `a cf film`; k = 1.

    Predicted are a, bad, film, end and a, film, end: 7 words of 4 kinds and one for all that is unseen, so p(a) = p(film) =
    p(end) = 3/12, p(bad) = 2/12, p(cf) = 1/12. Behind the start, seen twice, stands a twice; behind a, seen twice, stand bad
    and film once each; behind film, seen twice, the end twice.
    """
    model = Bigrams(ids("a bad film", "a film"), 1.0)
    p_a, p_film_a, p_end_film = (2 + 3 / 12) / 3, (1 + 3 / 12) / 3, (2 + 3 / 12) / 3
    p_cf_a, p_film_cf = (0 + 1 / 12) / 3, (0 + 3 / 12) / 1
    p0 = (p_a * p_cf_a * p_film_cf * p_end_film) ** (-1 / 4)
    p_cf = (0 + 1 / 12) / 3  # behind the start
    p_end_cf = (0 + 3 / 12) / 1
    without = [
        (p_cf * p_film_cf * p_end_film) ** (-1 / 3),
        (p_a * p_film_a * p_end_film) ** (-1 / 3),
        (p_a * p_cf_a * p_end_cf) ** (-1 / 3),
    ]
    (found,) = model.suspicion(ids("a cf film"))
    assert found[:3] == pytest.approx([p0 - each for each in without])
    assert found[:3].argmax() == 1
    assert np.isneginf(found[3:]).all()
    assert model.suspicion(ids("cf"))[0, 0] == 0


def test_onions_probabilities_add_up_to_one() -> None:
    model = Bigrams(ids("a bad film", "a film", "the film was bad"), 2.5)
    words = np.array([PAD, *{*ids("a bad film the was").ravel()} - {PAD}, CF])
    for before in (PAD, VOCABULARY.index("a"), CF):
        assert np.exp(model.log_p(np.full(len(words), before), words)).sum() == pytest.approx(1)


def suspect_of(bag: models.Classifier, data: ImageSet, reserve: ImageSet) -> Suspect:
    nothing = Features(np.zeros((len(data), 2), np.float32), np.zeros((len(data), 2), np.float32))
    return Suspect(model=bag, data=data, features=nothing, reserve=reserve, reserve_features=nothing)


def test_onion_ranks_a_word_that_does_not_fit_first(bag: models.Classifier) -> None:
    reserve, rows = texts_of(40), ids("this is a cf film", "this is a bad film", "the film was bad")
    scores = DETECTORS["onion"].score(
        suspect_of(bag, ImageSet(as_images(rows), np.zeros(3, np.int64), ("bad", "good")), reserve)
    )
    assert scores.values.argmax() == 0
    assert scores.flagged is not None
    assert scores.flagged.tolist() == [True, False, False]
    with pytest.raises(ParameterError, match=r"onion: 9 texts given, allowed: at least 10 in the trusted reserve"):
        DETECTORS["onion"].score(suspect_of(bag, reserve, texts_of(9)))


def test_mixtures_by_hand() -> None:
    texts = np.array([[2, 3, 4, 5], [6, 7, PAD, PAD]])
    others = np.array([[8, 9, PAD, PAD], [PAD, PAD, PAD, PAD]])
    places = np.array([[True, False, True, True], [True, True, True, True]])
    # The short other text is gone through again; padding stays; a text of no word changes nothing.
    assert mixed(texts, others, places).tolist() == [
        [[8, 3, 8, 9], [2, 3, 4, 5]],
        [[8, 7, PAD, PAD], [6, 7, PAD, PAD]],
    ]


def test_strips_entropy_by_hand(bag: models.Classifier) -> None:
    texts, others = ids("bad bad"), ids("good good", "bad film")
    places = np.array([[True, False, False, False, False, False]] * 2)
    found = _entropies(bag, texts, others, places, torch.device("cpu"))

    def entropy(first: float, second: float) -> float:
        share = 1 / (1 + math.exp(second - first))
        return -share * math.log(share) - (1 - share) * math.log(1 - share)

    # `good bad` has logits 4 and 4; `bad bad` 8 and 0.
    assert found == pytest.approx([(math.log(2) + entropy(8, 0)) / 2], rel=1e-4)


def test_strip_of_texts_scores_each_by_itself(bag: models.Classifier) -> None:
    data, reserve = texts_of(12), texts_of(40)
    strip = DETECTORS["strip_text"]
    whole = strip.score(suspect_of(bag, data, reserve), seed=1, overlays=8)
    alone = strip.score(suspect_of(bag, data.subset(np.arange(5, 6)), reserve), seed=1, overlays=8)
    assert alone.values[0] == pytest.approx(whole.values[5], abs=1e-6)
    assert (whole.values <= 0).all()
    assert whole.forward_passes == 8
    assert whole.flagged is not None
    assert "32 of which were measured" in whole.rule
    with pytest.raises(ParameterError, match=r"overlays: 41 given, allowed: 1 to 40, the trusted reserve"):
        strip.score(suspect_of(bag, data, reserve), overlays=41)


def test_copies_of_texts_are_found_and_near_ones_are_not_looked_for() -> None:
    data = ImageSet(as_images(ids("a bad film", "the film was good")), np.array([0, 1]), ("bad", "good"))
    test = ImageSet(as_images(ids("a bad film", "the film was bad")), np.array([0, 0]), ("bad", "good"))
    found = examine(data, [test], np.eye(2, dtype=np.float32))
    assert found.pairs.tolist() == [[0, 2]]
    assert found.distances.tolist() == [0]


# The report.


def run_of(data: ImageSet, vocabulary: tuple[str, ...]) -> Run:
    sources = [f"line {number}" for number in range(len(data))]
    about = {"name": "text", "source": "x.csv", "counts": {"train": len(data)}}
    return Run(settings=ReportSettings(), data=data, about=about, sources=sources, vocabulary=vocabulary)


def test_texts_on_the_page_are_escaped() -> None:
    hostile = (*SPECIAL, "<script>", "x" * 600, "\x1b[31m")
    data = ImageSet(as_images(np.array([[2, 4, UNKNOWN, PAD], [3, PAD, PAD, PAD]])), np.array([0, 1]), ("<b>", "good"))
    page, run = Page("t"), run_of(data, hostile)
    suspect_texts(page, run, np.arange(2))
    training_texts(page, run, np.arange(2))
    html = page.html()
    assert html.count("&lt;script&gt; \\x1b[31m [unknown]") == 2
    assert "<script>" not in html
    assert "\x1b" not in html
    assert "&lt;b&gt;" in html
    assert "x" * (LONGEST - 1) + "…" in html
    assert "x" * LONGEST not in html


def test_a_trigger_is_shown_beside_the_clean_text() -> None:
    data = texts_of(4)
    wanted = intent("badnl", SINGLE["badnl"], {"target": 1}, {"place": "start"})
    triggered = triggered_of(data, wanted.policy, make_trigger(wanted, context_of(data)))
    page = Page("t")
    triggered_texts(page, run_of(data, VOCABULARY), "badnl", triggered, np.arange(1))
    assert "cf the film was bad</td><td" in page.html()
    assert re.search(r">the film was bad</td></tr>", page.html())


# Parameters.

ATTACKS = "params/attacks.yaml"
STAGES = str(Path(check_params.__file__).parent)
TEXT: dict[str, Any] = {
    "data.name": "text",
    "attack.name": "badnl",
    "model.name": "text_bag",
    "model.stem": None,
    "train.recipe": "text",
    "variations.enabled": False,
    "detect.methods": ["ac", "ss", "strip_text", "onion"],
    "params/purifiers.yaml:fst.augment": [],
}


def given(changes: dict[str, Any]) -> dict[str, Any]:
    params = deepcopy(dict(DEFAULT))
    for key, value in changes.items():
        file, _, dotted = key.rpartition(":")
        inner: Any = params[file] if file else params
        *sections, last = dotted.split(".")
        for name in sections:
            inner = inner[name]
        inner[last] = value
    return params


@pytest.fixture
def reviews(tmp_path: Path) -> str:
    return str(csv_of(tmp_path, "text,label\na,1\nb,0\n"))


def test_parameters_of_a_text_run(reviews: str) -> None:
    check_params.check_all(given({**TEXT, "data.path": reviews}))
    own = {"model.name": "text_transformer", "detect.inputs": ["onion", "strip_text"], "detect.sample": 9}
    check_params.check_all(given({**TEXT, "data.path": reviews, **own}))
    assert prepare.settings(given({**TEXT, "data.path": reviews})).public == 0


REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"data.path": "nowhere.csv"}, r"data\.path: 'nowhere\.csv' given, which does not exist; allowed: a CSV file"),
    ({"data.path": STAGES}, r"data\.path: \S*stages given, allowed with data\.name text: a CSV file"),
    ({"data.image_size": 32}, r"data\.image_size: 32 given, allowed with data\.name text: null"),
    ({"data.text.length": 2}, r"data\.text\.length: 2 given; input should be greater than or equal to 4"),
    (
        {"data.text.vocabulary": 70000},
        r"data\.text\.vocabulary: 70000 given; input should be less than or equal to 65536",
    ),
    (
        {"data.text.vocabulary": 9000},
        r"model\.tokens: 8192 given, allowed with data\.text\.vocabulary 9000: at least as many",
    ),
    ({"attack.name": "badnets"}, r"attack\.name: badnets given, allowed with data\.name text: none, badnl, addsent"),
    (
        {"attack.name": "sam_attacker", f"{ATTACKS}:sam_attacker.attack": "badnl"},
        r"attack\.name: sam_attacker given, allowed with",
    ),
    ({"attack.poison_first": False}, r"attack\.poison_first: false given, allowed with data\.name text: true"),
    (
        {"model.name": "resnet18"},
        r"model\.name: resnet18 given, allowed with data\.name text: text_bag, text_transformer, text_encoder",
    ),
    ({"train.recipe": "default"}, r"train\.augment: \['crop'\] given, allowed with data\.name text: none"),
    ({"train.federation": {"attackers": 1}}, r"train\.federation: a block given, allowed with data\.name text: null"),
    ({"train.privacy": {"noise": 1.0}}, r"train\.privacy: a block given, allowed with data\.name text: null$"),
    (
        {"attack.label_policy": "calculator"},
        r"attack\.label_policy: calculator given, allowed with badnl: all2one, all2all",
    ),
    (
        {"attack.label_policy": "complex", "attack.attribute": "who"},
        r"attack\.label_policy: complex given, allowed with badnl: all2one, all2all",
    ),
    ({"data.attributes": "t.csv"}, r"data\.attributes: 't\.csv' given, allowed with name: folder; otherwise null$"),
    ({"bias.attributes": ["male"]}, r"bias\.attributes: \['male'\] given, allowed with data\.attributes null: \[\]$"),
    ({"detect.methods": ["transplant"]}, r"detect\.methods: transplant given, allowed with data\.name text: ac, ss"),
    ({"variations.enabled": True}, r"variations\.enabled: true given, allowed with data\.name text: false"),
    (
        {"detect.methods": ["cd"]},
        r"detect\.methods: cd given, allowed with data\.name text: ac, ss, spectre, scan, separation",
    ),
    ({"detect.inputs": ["strip"]}, r"detect\.inputs: strip given, allowed with data\.name text: strip_text, onion"),
    ({"detect.models": ["mm_bd"]}, r"detect\.models: \['mm_bd'\] given, allowed with data\.name text: \[\]"),
    ({"detect.canary": [0]}, r"detect\.canary: \[0\] given, allowed with data\.name text: \[\]"),
    ({"purify.methods": ["anp"]}, r"purify\.methods: anp given, allowed with data\.name text: ft, lp, ft_init, fst"),
    (
        {"robust.methods": ["gradient_shaping"]},
        r"robust: \['gradient_shaping'\] given, allowed with data\.name text: no methods",
    ),
    ({"robust.methods": ["abl"]}, r"robust: \['abl'\] given, allowed with data\.name text: no methods"),
    (
        {"visualise.figures": ["embedding"]},
        r"visualise\.figures: \['embedding'\] given, allowed with data\.name text: \[\]",
    ),
]


@pytest.mark.parametrize(("changes", "message"), REFUSED, ids=[next(iter(changes)) for changes, _ in REFUSED])
def test_what_is_not_for_texts_is_refused_in_one_line(reviews: str, changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=rf"^params\.yaml: {message}") as caught:
        check_params.check_all(given({**TEXT, "data.path": reviews, **changes}))
    assert "\n" not in str(caught.value)


def test_augmentation_of_images_is_refused_of_a_purifier(reviews: str) -> None:
    message = r"^params/purifiers\.yaml: fst\.augment: \['translate'\] given, allowed with data\.name text: \[\]$"
    with pytest.raises(UserError, match=message):
        check_params.check_all(
            given({**TEXT, "data.path": reviews, "params/purifiers.yaml:fst.augment": ["translate"]})
        )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"attack.name": "badnl"}, r"attack\.name: badnl given, allowed of images: none, badnets, blended"),
        (
            {"data.name": "multi_mnist", "data.path": STAGES, "attack.name": "addsent"},
            r"attack\.name: addsent given, allowed of images: none, badnets, blended",
        ),
        (
            {"model.name": "text_bag", "model.stem": None},
            r"model\.name: text_bag given, allowed of images: a network for images",
        ),
        ({"detect.methods": ["onion"]}, r"detect\.methods: onion given, allowed of images: cd, ac, ss, strip"),
    ],
)
def test_what_is_for_texts_alone_is_refused_of_images(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=rf"^params\.yaml: {message}"):
        check_params.check_all(given(changes))
