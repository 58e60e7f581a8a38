"""The library without DVC: a function or two per family, on image sets and models in memory.

What a stage of the pipeline reads from disk and writes there is an argument and a result here. Parameters are checked in the same
way, seeds mean the same, and a training by the same settings gives the same weights. `docs/library.md` has an example of each.
Nothing is kept between calls: an asset that an attack trains, and each variation, is made anew.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from inspect import signature
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np
from numpy.typing import ArrayLike

from . import models
from .attacks import ATTACKS, SINGLE, hand_of
from .compute.inference import features_of
from .core.content_store import ContentStore
from .core.errors import ParameterError, UserError, keys_of
from .core.hyperparameters import check, one_of
from .core.seeding import derive
from .crafting.attack import intents_of
from .crafting.context import Context
from .crafting.craft import craft
from .data.imageset import ImageSet
from .data.scores import Scored, Scores
from .data.store import Attributes
from .data.verdicts import Verdict
from .detection import DETECTORS
from .detection.detector import Suspect
from .evaluation.grading import model_metrics, rounded
from .evaluation.metrics import detection_metrics
from .inspection import INSPECTORS
from .models import Classifier
from .poisoning.poisoned import Poisoned
from .poisoning.triggered import triggered_of
from .purification import PURIFIERS
from .robust import ROBUST
from .training.loop import fit
from .training.privacy import PrivateRecipe
from .training.recipe import Recipe
from .training.recipes import RECIPES, recipe_named
from .variations import VARIATIONS
from .variations.generate import generate
from .variations.prior import Prior
from .variations.prior_training import PriorRecipe, train_prior
from .variations.sampling import Settings

__all__ = [
    "ATTACKS",
    "DETECTORS",
    "INSPECTORS",
    "PURIFIERS",
    "RECIPES",
    "ROBUST",
    "VARIATIONS",
    "detect",
    "evaluate",
    "grade",
    "image_set",
    "inspect",
    "poison",
    "prior",
    "purify",
    "scored",
    "suspect",
    "train",
    "train_robust",
    "train_victim",
    "vary",
]

Network = str | Mapping[str, Any]
"""A name out of docs/models.md ("resnet18"), or a block of `name` and the network's own arguments."""
Training = str | Mapping[str, Any] | Recipe
"""A name out of `RECIPES`, a block of `recipe` and settings that replace its own, or a recipe."""


def image_set(images: ArrayLike, labels: ArrayLike, classes: Sequence[str]) -> ImageSet:
    """Labelled images of one's own, checked.

    Args:
        images: n images of one size, uint8 [n, height, width, channels], of 1 or 3 channels.
        labels: the number of each image's class, whole numbers [n].
        classes: names of the classes, each once.

    Raises:
        UserError: an array of another type or shape, a label of no class, names that are no texts or not each of their own.
    """
    pixels, numbers, names = np.asarray(images), np.asarray(labels), tuple(classes)
    if pixels.dtype != np.uint8 or pixels.ndim != 4 or pixels.shape[3] not in (1, 3) or not pixels.size:
        raise UserError(
            f"images: {pixels.dtype} {list(pixels.shape)} given, allowed: uint8 [n, height, width, channels], of 1 or 3 channels"
        )
    if numbers.dtype.kind not in "iu" or numbers.shape != pixels.shape[:1]:
        raise UserError(
            f"labels: {numbers.dtype} {list(numbers.shape)} given, allowed: whole numbers [{len(pixels)}], one for each image"
        )
    if isinstance(classes, str) or len({*names}) < len(names) or not all(isinstance(name, str) for name in names):
        raise UserError(f"classes: {classes!r} given, allowed: a list of texts, each once")
    if numbers.min() < 0 or numbers.max() >= len(names):
        raise UserError(
            f"labels: {numbers.min()} to {numbers.max()} given, allowed: 0 to {len(names) - 1}, the numbers of the classes"
        )
    return ImageSet(pixels, numbers.astype(np.int64), names)


def poison(
    train: ImageSet,
    attack: str,
    *,
    policy: Mapping[str, Any] | None = None,
    seed: int = 0,
    network: Network | None = None,
    recipe: Training = "default",
    attributes: Attributes | None = None,
    **own: Any,
) -> Poisoned:
    """What an attacker does to a training set: `received(train)` of the result is what a victim gets, `truth.mask` says which.

    Args:
        train: the clean training set.
        attack: a name out of `ATTACKS`.
        policy: keys of `poisoning.policy.Policy` (`target`, `poison_rate`, `label_policy`), classes by number or name; those left
            out are as the attack is published.
        seed: the attacker's seed.
        network, recipe: of the networks that he trains himself, where the attack needs one; None: that of the pipeline.
        attributes: attributes of the samples, for the label policy `complex`.
        own: the attack's own parameters, as in `params/attacks.yaml`.

    Raises:
        ParameterError: an unknown attack or key, a value out of range, or one that does not fit the data. The attack's own keys are
            named `ATTACK.KEY`.
        UserError: an attack on texts.
    """
    _check_seed(seed)
    one_of(attack, ATTACKS, key="attack")
    intents = intents_of(attack, ATTACKS, dict(policy or {}), {attack: own}, train.classes)
    images = [name for name, method in SINGLE.items() if method.images and name != "none"]
    if not intents or not all(intent.method.images for intent in intents):
        raise ParameterError(f"attack: {attack} given, allowed of images: {', '.join([*images, 'multi'])}")
    about: dict[str, Any] = {} if network is None else {"network": _network(network)}
    context = Context(train=train, seed=seed, recipe=_recipe(recipe), attributes=attributes, **about)
    return craft(attack, intents, context)


def train(data: ImageSet, network: Network = "resnet18", recipe: Training = "default", *, seed: int = 0) -> Classifier:
    """A network trained on a set as it is: the control. For a victim there is `train_victim`, whose weights begin otherwise.

    Args:
        data: the training set.
        network: the network.
        recipe: how it is trained.
        seed: seed of the weights, the order and the augmentation.

    Raises:
        UserError: an unknown network or recipe, settings that do not fit the data, or a training that diverges.
    """
    _check_seed(seed)
    how, model = _recipe(recipe), _fresh(network, data, derive(seed, "clean/weights"))
    with keys_of("recipe"):
        fit(model, data, how, seed=seed, what="clean")
    return model


def train_victim(
    attack: Poisoned,
    train: ImageSet,
    network: Network = "resnet18",
    recipe: Training = "default",
    *,
    seed: int = 0,
) -> tuple[Classifier, Poisoned]:
    """The network of somebody who was attacked, with the attacker's hand in the training where the attack has one.

    Args:
        attack: what `poison` gave.
        train: the clean set that was poisoned.
        network: the victim's network.
        recipe: how it is trained.
        seed: seed of the weights, the order, the augmentation and the hand.

    Returns:
        The victim, and the attack with the triggers that were trained beside it; of most attacks that is `attack`.

    Raises:
        UserError: another set than the one that was poisoned; as `train`.
    """
    _check_seed(seed)
    if not np.array_equal(attack.truth.labels, train.labels):
        raise UserError(f"train: {len(train)} images with other labels given, allowed: the set that was poisoned")
    hand = hand_of(attack, train, seed=seed) if attack.truth.in_training else None
    data = attack.received(train) if hand is None else train
    how, model = _recipe(recipe), _fresh(network, data, derive(seed, "backdoored/weights"))
    with keys_of("recipe"):
        fit(model, data, how, seed=seed, what="backdoored", hand=hand)
    return model, attack if hand is None else replace(attack, triggers=hand.trained())


def evaluate(
    model: Classifier, test: ImageSet, attack: Poisoned | None = None, *, attributes: Attributes | None = None
) -> dict[str, Any]:
    """`acc`, and with the attack `asr` and `ra` (README.md says what these are), as `reports/metrics.json` has them.

    Args:
        model: the model to grade.
        test: clean test images.
        attack: what `poison` or `train_victim` gave; its triggers are put on the test images here.
        attributes: attributes of the test images, for the label policy `complex`.

    Raises:
        UserError: another size or number of classes than the model's, or logits that are not finite.
    """
    _check_fits(model, test, "test")
    truth = None if attack is None else attack.truth
    triggered = {}
    if attack is not None:
        for name, part, trigger in zip(attack.truth.names, attack.truth.parts, attack.triggers, strict=True):
            with keys_of(name):
                triggered[name] = triggered_of(test, part.policy, trigger, attributes)
    return rounded(model_metrics(model, test, truth, triggered))


def suspect(model: Classifier, data: ImageSet, trusted: ImageSet) -> Suspect:
    """What detectors are handed: a model, the training set that it may have got a backdoor from, and trusted images.

    Args:
        model: the classifier, which is left as it was.
        data: its training set, with the labels as received.
        trusted: labelled images that are known to be clean.

    Raises:
        UserError: sets of other images or classes than the model's.
    """
    _check_fits(model, data, "data")
    _check_fits(model, trusted, "trusted")
    return Suspect(
        model=model,
        data=data,
        features=features_of(model, data),
        reserve=trusted,
        reserve_features=features_of(model, trusted, what="features of trusted images"),
    )


def detect(suspect: Suspect, method: str, *, seed: int = 0, **own: Any) -> Scores:
    """The scores of a set's samples by one detector: `values`, higher = more suspicious.

    Args:
        suspect: what `suspect` gave.
        method: a name out of `DETECTORS`.
        seed: the detector's seed.
        own: its own parameters, as in `params/detectors.yaml`.

    Raises:
        ParameterError: an unknown detector or key, a value out of range.
        UserError: too few trusted images, a detector of texts; what the detector refuses.
    """
    _check_seed(seed)
    detector = one_of(method, DETECTORS, key="method")
    if not detector.images:
        allowed = ", ".join(name for name, other in DETECTORS.items() if other.images)
        raise ParameterError(f"method: {method} given, allowed of images: {allowed}")
    with keys_of(method):
        arguments = check(own, detector.parameters)
        _check_trusted(method, suspect.reserve, detector.needs_trusted(**arguments))
        scores: Scores = detector.score(suspect, seed=seed, **arguments)
    return scores


def grade(scores: Scores, attack: Poisoned) -> dict[str, float]:
    """A detector's scores against the truth: `auroc`, `ap`, `tpr_at_1fpr`, `tpr_at_5fpr`, `precision_at_count`.

    Args:
        scores: what `detect` gave.
        attack: what `poison` gave.

    Raises:
        UserError: scores of another set, or an attack that poisons no data set, as its victim receives a model.
    """
    truth = attack.truth
    if truth.received == "model":
        raise UserError(f"attack: {truth.attack} given, allowed: one that poisons a data set, which this one does not")
    poisoned = truth.mask if scores.index is None else truth.mask[scores.index]
    if len(scores.values) != len(poisoned):
        raise UserError(
            f"scores: of {len(scores.values)} samples given, allowed: of the {len(poisoned)} that were poisoned"
        )
    return rounded(detection_metrics(scores.values, poisoned))


def scored(suspect: Suspect, scores: Scores, *, detector: str = "the detector") -> Scored:
    """A detector's scores with their samples, for methods that build on them (`by`).

    Args:
        suspect: what the detector was handed.
        scores: what it gave.
        detector: its name, for messages.
    """
    return Scored(data=suspect.data, values=scores.values, flagged=scores.flagged, detector=detector)


def inspect(model: Classifier, trusted: ImageSet, method: str, *, seed: int = 0, **own: Any) -> Verdict:
    """Whether a model is backdoored, by one inspector: `flagged` says of each class whether it is the target of a backdoor.

    Args:
        model: the classifier, which is left as it was.
        trusted: labelled images that are known to be clean.
        method: a name out of `INSPECTORS`.
        seed: the inspector's seed.
        own: its own parameters, as in `params/detectors.yaml`.

    Raises:
        ParameterError: an unknown inspector or key, a value out of range.
        UserError: too few trusted images or classes; what the inspector refuses.
    """
    _check_seed(seed)
    inspector = one_of(method, INSPECTORS, key="method")
    _check_fits(model, trusted, "trusted")
    with keys_of(method):
        arguments = check(own, inspector.parameters)
        _check_trusted(method, trusted, inspector.needs_trusted(**arguments))
        verdict: Verdict = inspector.inspect(model, trusted, seed=seed, **arguments)
    return verdict


def purify(
    model: Classifier,
    trusted: ImageSet,
    method: str,
    *,
    by: Scored | Verdict | None = None,
    seed: int = 0,
    **own: Any,
) -> Classifier:
    """A new model without the backdoor, by one purifier.

    Args:
        model: the suspect classifier, which is left as it was.
        trusted: labelled images that are known to be clean.
        method: a name out of `PURIFIERS`.
        by: what some of them build on besides: what `scored` or `inspect` gave.
        seed: the purifier's seed.
        own: its own parameters, as in `params/purifiers.yaml`.

    Raises:
        ParameterError: an unknown purifier or key, a value out of range, `by` missing, of the wrong kind or not asked for.
        UserError: too few trusted images, a network that the purifier cannot work on.
    """
    _check_seed(seed)
    purifier = one_of(method, PURIFIERS, key="method")
    _check_fits(model, trusted, "trusted")
    built_on = _built_on(method, purifier.by, by)
    with keys_of(method):
        arguments = check(own, purifier.parameters)
        _check_trusted(method, trusted, purifier.needs_trusted)
        purified: Classifier = purifier.purify(model, trusted, *built_on, seed=seed, **arguments)
    return purified


def train_robust(
    data: ImageSet,
    trusted: ImageSet,
    method: str,
    network: Network = "resnet18",
    recipe: Training = "default",
    *,
    by: Scored | None = None,
    variations: ImageSet | None = None,
    backdoored: Classifier | None = None,
    public: ImageSet | None = None,
    seed: int = 0,
    **own: Any,
) -> Classifier:
    """A clean model although the training set is poisoned, by one method of robust training.

    Args:
        data: the training set as received.
        trusted: labelled images that are known to be clean; some methods do not look at them.
        method: a name out of `ROBUST`.
        network: the network.
        recipe: how it is trained, where the method has no recipe of its own.
        by: what some of them build on besides: what `scored` gave.
        variations, backdoored, public: of `distillation`: the set's variations (`vary`), the model that was trained on it
            (`train_victim`), and clean images whose labels are not looked at.
        seed: seed of the weights and of all that is drawn.
        own: the method's own parameters, as in `params/robust.yaml`.

    Raises:
        ParameterError: an unknown method or key, a value out of range, an input missing or not asked for.
        UserError: too few trusted images, a private recipe that the method does not take; as `train`.
    """
    _check_seed(seed)
    chosen = one_of(method, ROBUST, key="method")
    given = {"data": data, "reserve": trusted, "variations": variations, "backdoored": backdoored, "public": public}
    for key in ("variations", "backdoored", "public"):
        if key in chosen.inputs and given[key] is None:
            raise ParameterError(f"{key}: none given, allowed with {method}, which trains on it: one")
        if key not in chosen.inputs and given[key] is not None:
            raise ParameterError(f"{key}: one given, allowed with {method}: none")
    built_on, how = _built_on(method, chosen.by, by), _recipe(recipe)
    if isinstance(how, PrivateRecipe) and not chosen.private:
        raise ParameterError(f"recipe: a private one given, allowed with {method}: one without privacy")
    _network(network)

    def make_model() -> Classifier:
        # By the purposes of the stages: the one method with a stage of its own trains a student.
        return _fresh(network, data, derive(seed, f"{'student' if chosen.made_elsewhere else method}/weights"))

    arguments = _checked(method, own, chosen.parameters)
    _check_trusted(method, trusted, chosen.needs_trusted(**arguments))
    inputs = [given[name] for name in chosen.inputs]
    with _keys(method, chosen.parameters):
        model, _ = chosen.train(make_model, *inputs, *built_on, how, seed=seed, **arguments)
    return model


def prior(images: ImageSet, *, seed: int = 0, **recipe: Any) -> Prior:
    """A diffusion prior, which variations are drawn from.

    Args:
        images: images to learn from, trusted ones unless it is to learn what a trigger looks like; labels are not looked at.
        seed: seed of weights, batches and noise.
        recipe: keys of `variations.prior_training.PriorRecipe` (`steps`, `channels`), as in the section `prior` of `params.yaml`.

    Raises:
        ParameterError: an unknown key, a value out of range, channels or sides that do not fit, a training that diverges.
    """
    _check_seed(seed)
    with TemporaryDirectory() as scratch:
        wanted = PriorRecipe(**check(recipe, PriorRecipe))
        return train_prior(images, wanted, seed=seed, scratch=Path(scratch) / "prior")[0]


def vary(
    data: ImageSet,
    prior: Prior,
    method: str = "sdedit",
    *,
    num_variations: int = 1,
    color_transfer: bool = True,
    seed: int = 0,
    **own: Any,
) -> ImageSet:
    """Variations of a set's images with the labels of those: what they show stays, a trigger need not.

    Args:
        data: n images.
        prior: what `prior` gave.
        method: a name out of `VARIATIONS`, of those that work with a prior.
        num_variations: variations of each image.
        color_transfer: whether each takes its source's mean and standard deviation per channel.
        seed: seed of the noise.
        own: the method's own parameters, as in `params/variations.yaml`.

    Returns:
        n * `num_variations` images, those of one image one after another.

    Raises:
        ParameterError: an unknown method or key, a value out of range, one that works with weights from elsewhere.
        UserError: a prior for images of other channels.
    """
    _check_seed(seed)
    chosen = one_of(method, VARIATIONS, key="method")
    if chosen.pipeline is not None:
        allowed = ", ".join(name for name, other in VARIATIONS.items() if other.pipeline is None)
        raise ParameterError(f"method: {method} given, which takes weights from elsewhere; allowed here: {allowed}")
    settings = Settings(**check({"num_variations": num_variations, "color_transfer": color_transfer}, Settings))
    arguments = chosen.whole(_checked(method, own, chosen.parameters))
    with keys_of(method):
        chosen.evaluations(**arguments)
        made = generate(data, method, prior, settings, arguments, seed=seed, store=ContentStore(None)).gather()
    images = made.reshape(-1, *made.shape[2:])
    return ImageSet(images, data.labels.repeat(num_variations), data.classes)


def _checked(method: str, given: Mapping[str, Any], schema: Callable[..., Any]) -> dict[str, Any]:
    """A method's own parameters, checked; an error names them `METHOD.KEY`."""
    with keys_of(method):
        return check(given, schema)


@contextmanager
def _keys(method: str, own: Callable[..., Any]) -> Iterator[None]:
    """Say whose the key of a `ParameterError` is: a method's own, or the recipe's; that of a network has its name already."""
    try:
        yield
    except ParameterError as error:
        key = str(error).partition(":")[0]
        if key.startswith("network."):
            raise
        raise ParameterError(f"{method if key in signature(own).parameters else 'recipe'}.{error}") from None


def _check_seed(seed: Any) -> None:
    if not isinstance(seed, int) or isinstance(seed, bool) or seed < 0:
        raise ParameterError(f"seed: {seed!r} given, allowed: a whole number from 0")


def _network(given: Network) -> dict[str, Any]:
    """Name and arguments of a network, checked."""
    arguments = {"name": given} if isinstance(given, str) else dict(given)
    name = arguments.pop("name", None)
    with keys_of("network"):
        return {"name": name, **models.network_arguments(name, arguments)}


def _fresh(network: Network, data: ImageSet, seed: int) -> Classifier:
    """The network for the images and classes of a set, with fresh weights."""
    about: dict[str, Any] = {"image_size": data.image_size, "channels": data.channels, **_network(network)}
    return models.build(**about, num_classes=len(data.classes), seed=seed)


def _recipe(given: Training) -> Recipe:
    if isinstance(given, Recipe):
        return given
    with keys_of("recipe"):
        return recipe_named({"recipe": given} if isinstance(given, str) else given)


def _check_fits(model: Classifier, data: ImageSet, key: str) -> None:
    """Raises UserError for a set of other images or classes than a model is for."""
    theirs = (*model.description["image_size"], model.description.get("channels", data.channels))
    ours = (*data.image_size, data.channels)
    if theirs != ours:
        raise UserError(f"{key}: images of {_by(ours)} given, allowed with this model: {_by(theirs)}")
    if (classes := model.head.out_features) != len(data.classes):
        raise UserError(f"{key}: {len(data.classes)} classes given, allowed with this model: {classes}")


def _by(size: Sequence[int]) -> str:
    return f"{size[0]}x{size[1]} px, {size[2]} channels"


def _check_trusted(method: str, trusted: ImageSet, needed: int) -> None:
    if len(trusted) < needed:
        raise UserError(f"trusted: {len(trusted)} images given, allowed: at least {needed}, {method} needs them")


def _built_on(method: str, kind: str | None, by: Scored | Verdict | None) -> list[Scored | Verdict]:
    """What a method builds on besides, as a list of one, or of nothing."""
    kinds = {"scores": (Scored, "what `scored` gives"), "verdicts": (Verdict, "what `inspect` gives")}
    if kind is None:
        if by is not None:
            raise ParameterError(f"by: given, allowed with {method}: none")
        return []
    wanted, said = kinds[kind]
    if by is None or not isinstance(by, wanted):
        found = "none" if by is None else f"a {type(by).__name__}"
        raise ParameterError(f"by: {found} given, allowed with {method}: {said}")
    return [by]
