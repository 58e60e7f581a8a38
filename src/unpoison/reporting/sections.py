"""The report's sections of words and tables, in the order they appear on the page."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from ..core.arrays import IntArray, Mask
from ..data.ranks import ranks
from ..poisoning.policy import Policy
from ..poisoning.truth import Truth
from . import figures, pictures
from .answer import LEARNED, answer
from .audit import audited
from .classes import MOST_CLASSES, agreement, by_class
from .intervals import EXPLAINED, bracketed, images_behind, share_of
from .metrics import best_first
from .page import Page, Table
from .problems import problems
from .run import Run

NO_SET = (
    "The victim of this attack receives a model, and no data set is poisoned: what looks at a training set (detectors of training "
    "samples, robust training, variations, stress tests) has nothing to look at."
)
SURROGATE = (
    "Of a surrogate: the victim of this attack receives a model. The set that detectors of training samples, robust training, "
    "variations and stress tests were given was poisoned to stand in for one that there is not, and their figures are of it."
)

WOKEN = (
    "Woken: share of the suspects whose labels the model contradicts that get these labels once it was tuned for a moment on a few "
    "others of them. Where much of it wakes, a backdoor is left in the model."
)

UNDERTRAINED = (
    "The backdoored model gives only {:.0%} of its training samples their labels: it is undertrained, and detectors find little in "
    "what it has not learned. Raise train.epochs, or choose another recipe."
)
OF_ONE_VALUE = "An interval without a width says that every draw gave the same figure, not that there is no doubt."
SEVERAL = (
    " An image counts once for each trigger, and what a model makes of it under several is much alike: the intervals of ASR and RA "
    "are too narrow."
)
PRIOR_ON_POISON = (
    "The prior was trained on the suspect set: what it learned of a trigger it may draw into any variation."
)


def report(run: Run) -> Page:
    """The page of a run."""
    page = Page("unpoison: report")
    if run.settings.note:
        page.text(" ".join(run.settings.note.split()))
    answer(page, run)
    # Words and figures first, then pictures; a section that has nothing to show adds nothing.
    audited(page, run)
    what_was_run(page, run)
    models(page, run)
    detection(page, run)
    by_class(page, run)
    agreement(page, run)
    inputs(page, run)
    inspected(page, run)
    problems(page, run)
    pictures.training_samples(page, run)
    pictures.triggered_samples(page, run)
    pictures.scores(page, run)
    pictures.masks(page, run)
    pictures.suspects(page, run)
    pictures.training(page, run)
    pictures.drawings(page, run)
    attributes(page, run)
    return page


def what_was_run(page: Page, run: Run) -> None:
    """Data, attack, network, recipe, variations, seed and machine, as the artefacts record them."""
    # From the artefacts, not from params.yaml, which may have changed since.
    page.heading("What was run")
    rows = [("data", data_of(run)), ("attack", _attack(run))]
    if run.model is not None:
        network, made_by = run.model["network"], run.model["made_by"]
        rows.append(("network", network_of(network)))
        # Of others that were trained those that are not the victim's.
        others = {name: network_of(other["network"]) for name, other in run.defended.items()}
        rows += [(f"network of {name}", other) for name, other in others.items() if other != network_of(network)]
        if run.teacher:
            rows.append(("teacher of student", run.teacher))
        received = "none here: the model was received" if "received" in made_by else ""
        rows.append(("training", received or recipe_of(made_by)))
        spent = {"": made_by, **{f" of {name}": other["made_by"] for name, other in run.defended.items()}}
        rows += [(f"privacy{of}", privacy_of(about)) for of, about in spent.items() if "privacy" in about]
        if "federation" in made_by:
            rows.append(
                ("federation", inline({key: inline(value) for key, value in made_by["federation"].items() if value}))
            )
    if run.sampler is not None:
        rows.append(("variations", inline(run.sampler)))
        if run.sampler.get("prior") == "data/poisoned":
            rows.append(("warning", PRIOR_ON_POISON))
    if run.learned is not None and run.learned < LEARNED:
        rows.append(("warning", UNDERTRAINED.format(run.learned)))
    if run.model is not None:
        rows += [
            (name, str(made_by.get(key, "not recorded"))) for name, key in (("seed", "seed"), ("trained on", "machine"))
        ]
    page.table(Table(("", "setting"), rows, frozenset({1})))


def network_of(described: Mapping[str, Any]) -> str:
    """A network by name and arguments."""
    return inline({"name": described["name"], **described["arguments"]})


def recipe_of(made_by: Mapping[str, Any]) -> str:
    """A training's recipe in one line, without what it says of privacy: what was spent says more."""
    recipe = made_by.get("recipe", {})
    return inline(
        {key: value for key, value in recipe.items() if key != "privacy"} if isinstance(recipe, Mapping) else recipe
    )


def privacy_of(made_by: Mapping[str, Any]) -> str:
    """What a private training has spent, and by which steps."""
    spent = made_by["privacy"]
    return (
        f"epsilon {spent['epsilon']:.4g} at delta {spent['delta']:g}, by DP-SGD with noise {spent['noise']:.4g} and clip "
        f"{spent['clip']:g}, of this model alone"
    )


def models(page: Page, run: Run) -> None:
    """ACC, ASR and RA of every model, and the visibility of the triggers."""
    if run.metrics is None:
        page.heading("Models")
        page.text("No model of this run was graded: `evaluate` does that, where there is a backdoored model.")
        return
    page.heading("Models")
    if run.received != "set":
        page.text(NO_SET if run.received == "model" else SURROGATE)
    graded = graded_models(run.metrics)
    # Without the truth accuracy is all there is.
    columns = {"ACC": "acc"}
    if run.truth is not None:
        columns |= {"ACC without target": "acc_without_target", "ASR": "asr", "RA": "ra"}
        # What not every run has, and every other table is narrower without.
        more = {
            "cross ACC": "cross_acc",
            "DER": "der",
            "retuned ASR": "retuned_asr",
            "reactivated ASR": "reactivated_asr",
        }
        columns |= {head: key for head, key in more.items() if any(key in values for values in graded.values())}
    # DER is no share of images, and has no number of them.
    behind = images_behind(run)
    rows = [
        [name, *(share_of(values.get(key), behind.get(key)) for key in columns.values())]
        for name, values in graded.items()
    ]
    page.table(Table(["model", *columns], rows))
    for name, values in graded.items():
        if fallen := values.get("collapsed"):
            page.text(
                f"{name} has collapsed: {fallen['share']:.1%} of the {behind['acc']:,.0f} clean test images get class "
                f"{run.class_name(int(fallen['class']))}. ASR and RA say nothing of such a model."
            )
        if found := values.get("found"):
            page.text(f"{name} found: {', '.join(f'{key} {value:.4g}' for key, value in found.items())}.")
            if "woken" in found:
                page.text(WOKEN)
    if not run.about["counts"].get("test"):
        page.text("There is no test split, so no model has an accuracy on images that it was not trained on.")
        return
    if run.truth is None:
        page.text(
            f"ACC is accuracy on the {behind['acc']:,.0f} images of the test split. Nothing is known about an attack, so there "
            f"is no ASR. {EXPLAINED}"
        )
        return
    others = f" {behind['acc_without_target']:,.0f}" if "acc_without_target" in behind else ""
    page.text(
        f"ACC: accuracy on {behind['acc']:,.0f} clean test images. ASR: share of {behind['asr']:,.0f} triggered test images "
        f"({_tested(run.truth)}) that get the attacker's label (lower is better for a defence). RA: share of the same images "
        f"that still get their true label. ACC without target: on{others} clean test images of other classes than the target, as "
        f"D-BR reports it. {EXPLAINED}{SEVERAL if len(run.truth.parts) > 1 else ''}"
    )
    if "asr" in graded.get("clean", {}):
        page.text(
            "clean is the control: the same network, trained on the clean set. Its ASR, "
            f"{graded['clean']['asr']:.3f}, is what the trigger does without a backdoor: a perfect defence leaves as much."
        )
    if words := _holds(columns, graded):
        page.text(words)
    _triggers(page, run, run.metrics)
    # A semantic trigger may be on no test image, and then there is nothing to plot.
    shown = [*_line(run), *_rounds(run)]
    if all("asr" in values for values in graded.values()):
        points = {name: (values["acc"], values["asr"]) for name, values in graded.items()}
        shown.insert(0, (figures.acc_against_asr(points), "ACC against ASR"))
    if shown:
        page.figures(shown)


def detection(page: Page, run: Run) -> None:
    """Metrics of each detector, best first, with a remark where the poison breaks its assumption; and what each flags."""
    graded, rules = run.graded, [name for name in run.detectors if run.scores[name].rule]
    if graded or rules or run.not_applicable:
        page.heading("Detection")
    if run.not_applicable:
        page.text(f"Not applicable: {', '.join(run.not_applicable)}. {NO_SET}")
    elif (graded or rules) and run.received == "surrogate":
        page.text(SURROGATE)
    if graded:
        keys = ("auroc", "ap", "tpr_at_1fpr", "tpr_at_5fpr", "precision_at_count")
        header = ["detector", "AUROC", "AP", "TPR at 1 % FPR", "TPR at 5 % FPR", "precision at the true count"]
        rows = []
        for name in best_first(graded):
            numbers = [_with_interval(run, name, key, graded[name][key]) for key in keys]
            rows.append([name, *numbers, _passes(run, name), _remark(run, name, graded[name])])
        page.table(Table([*header, "passes per sample", "remark"], rows, frozenset({7})))
        # A sentence for each set of samples: most often all detectors score the same ones.
        for part in dict.fromkeys(filter(None, (_part(run, values) for values in graded.values()))):
            page.text(part)
        if run.intervals is not None:
            page.text(f"In brackets: 95 % bootstrap intervals, poisoned and clean samples drawn apart. {OF_ONE_VALUE}")
    if rules:
        page.text("What each detector flags by its own rule, which knows no truth:")
        rows = [[name, *_flagged(run, name, graded.get(name, {})), run.scores[name].rule] for name in rules]
        page.table(Table(["rule of", "flagged", "TPR", "FPR", "rule"], rows, frozenset({4})))
        if graded:
            page.text(f"TPR: share of the poisoned samples that are flagged; FPR: of the clean ones. {EXPLAINED}")


def inputs(page: Page, run: Run) -> None:
    """Metrics of the detectors of test inputs, best first."""
    graded = run.metrics.get("inputs", {}) if run.metrics is not None else {}
    if not graded:
        return
    page.heading("Detection at test time")
    keys = ("auroc", "ap", "tpr_at_1fpr", "tpr_at_5fpr", "flagged_tpr", "flagged_fpr")
    header = [
        "detector of inputs",
        "AUROC",
        "AP",
        "TPR at 1 % FPR",
        "TPR at 5 % FPR",
        "TPR of its rule",
        "FPR of its rule",
    ]
    rows, numbers = [], dict[tuple[float, float], None]()
    for name in best_first(graded):
        values = graded[name]
        triggered, clean = _shown_inputs(run, values)
        numbers[triggered, clean] = None
        # The last two are of the triggered images and of the clean ones.
        rates = [share_of(values.get(key), number) for key, number in zip(keys[-2:], (triggered, clean), strict=True)]
        rows.append([name, *(_with_interval(run, f"inputs.{name}", key, values[key]) for key in keys[:-2]), *rates])
    page.table(Table(header, rows))
    of = ", ".join(
        f"{triggered:,.0f} triggered test images among {clean:,.0f} clean ones" for triggered, clean in numbers
    )
    page.text(
        f"Figures are of {of}, each by itself and without labels. In brackets: 95 % intervals, of a rule's rates by Wilson's "
        f"formula, else by bootstrap, triggered and clean images drawn apart. {OF_ONE_VALUE}"
    )


def _shown_inputs(run: Run, values: Mapping[str, Any]) -> tuple[float, float]:
    """Number of triggered and of clean test images that a detector of inputs was shown: all, or a sample of them."""
    if "scored" in values:
        return values["scored_poisoned"], values["scored"] - values["scored_poisoned"]
    behind = images_behind(run)
    return behind.get("asr", 0), behind["acc"]


def inspected(page: Page, run: Run) -> None:
    """What each inspector says of the backdoored model, class by class."""
    if not run.verdicts:
        return
    page.heading("Models inspected")
    graded = run.metrics.get("models", {}) if run.metrics is not None and run.truth is not None else {}
    rows = []
    for name, verdict in run.verdicts.items():
        flagged = ", ".join(map(run.class_name, np.flatnonzero(verdict.flagged).tolist())) or "none"
        right = (f"{graded[name][key]:.3g}" if key in graded.get(name, {}) else "–" for key in ("hit", "false_alarms"))
        rows.append([name, flagged, *right, f"{verdict.forward_passes:,.0f}", verdict.rule])
    header = ["inspector", "classes flagged", "hit", "false alarms", "passes", "rule"]
    page.table(Table(header, rows, frozenset({1, 5})))
    page.text("A class that is flagged counts as the target of a backdoor; a model with none counts as clean.")
    if run.truth is None:
        page.text("Nothing is known about an attack, so nobody can say here whether a flag is right.")
    # All classes, or of many those that some inspector ranks first.
    foremost = np.min([ranks(verdict.anomaly)[0] for verdict in run.verdicts.values()], axis=0)
    shown = np.sort(np.argsort(foremost, kind="stable")[:MOST_CLASSES])
    rows = [
        [run.class_name(label), *(f"{verdict.anomaly[label]:.2f}" for verdict in run.verdicts.values())]
        for label in shown.tolist()
    ]
    page.table(Table(["anomaly index of class", *run.verdicts], rows))
    if len(shown) < len(foremost):
        page.text(f"The {len(shown)} most suspicious of {len(foremost)} classes.")
    pictures.patches(page, run)


def attributes(page: Page, run: Run) -> None:
    """How well each attribute is known, and where the mean mask of it lies."""
    if not run.attributes:
        return
    page.heading("Attributes")
    rows = []
    for one in run.attributes:
        place = (
            [f"{one.peak[0]}, {one.peak[1]}", f"{one.mask.max():.3f}", f"{one.contrast:.1f}"]
            if one.images
            else ["–"] * 3
        )
        shares = [f"{one.share:.3f}", f"{one.accuracy:.3f}", f"{one.balanced:.3f}"]
        rows.append([one.name, *shares, f"{one.images:,} of {one.having:,}", *place])
    header = [
        "attribute",
        "share",
        "accuracy",
        "balanced accuracy",
        "images",
        "row, column of the peak",
        "peak",
        "peak over mean",
    ]
    page.table(Table(header, rows))
    page.text(
        "Share: of the training samples that have it; accuracy: on the held-out images of the reserve; images: those that have the "
        "attribute and in which the network sees it, of all there that have it. The peak is the largest value of their mean mask: "
        "a high one at a place where nothing of the attribute is says that the network goes by something else."
    )
    pictures.attributes(page, run)


def _with_interval(run: Run, detector: str, key: str, value: float) -> str:
    """A figure, with its bootstrap interval where there is one."""
    name = f"{detector}.{key}"
    if run.intervals is None or name not in run.intervals:
        return f"{value:.3f}"
    return bracketed(value, *run.intervals[name])


def _passes(run: Run, detector: str) -> str:
    """The cost of a detector's scores."""
    return f"{run.scores[detector].forward_passes:g}" if detector in run.scores else "–"


def _flagged(run: Run, detector: str, graded: Mapping[str, Any]) -> list[str]:
    """Number of samples that a detector's rule flags, and the rates that come with it where the truth is known."""
    scored = run.scores[detector]
    flagged = scored.flagged
    count = "–" if flagged is None else f"{int(flagged.sum()):,}\u00a0of\u00a0{len(flagged):,}"
    poisoned = None if run.poisoned is None else run.poisoned[run.samples(scored)]
    of = (None, None) if poisoned is None else (poisoned.sum(), (~poisoned).sum())
    return [
        count,
        *(share_of(graded.get(key), number) for key, number in zip(("flagged_tpr", "flagged_fpr"), of, strict=True)),
    ]


def graded_models(metrics: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Metrics of every graded model, by its name on the page."""
    graded = {name: metrics[name] for name in ("backdoored", "clean", "student") if name in metrics}
    for family in ("purified", "robust"):
        graded |= {f"{family}: {name}": values for name, values in metrics.get(family, {}).items()}
    return graded


def _holds(columns: Mapping[str, str], graded: Mapping[str, Mapping[str, Any]]) -> str:
    """What the figures of defended models mean, of those that the table has; "" where it has none."""
    words = []
    if "cross ACC" in columns:
        words.append(
            "Cross ACC: share of the same images, stamped as the attack's cover samples are and not with the trigger, that get "
            "their true label."
        )
    if "DER" in columns:
        words.append(
            "DER: (1 + fall of ASR - fall of ACC) / 2, against the backdoored model; 0.5 where a defence changes neither."
        )
    if "retuned ASR" in columns:
        words.append(
            "Retuned ASR: after a few steps on the trusted images with some poisoned ones among them; a backdoor that is "
            "back at once was asleep and not gone."
        )
        controls = [values["retuned_asr_clean"] for values in graded.values() if "retuned_asr_clean" in values]
        if controls:
            words.append(f"The clean model has {controls[0]:.3f} after the same steps.")
    if "reactivated ASR" in columns:
        words.append(
            "Reactivated ASR: of triggered test images that a generator has changed a little, trained by queries to wake the "
            "backdoor."
        )
        controls = [values["reactivated_asr_clean"] for values in graded.values() if "reactivated_asr_clean" in values]
        if controls:
            words.append(f"The clean model gives the attacker's label to {_from_to(controls)} of the same images.")
    return " ".join(words)


def _from_to(values: Sequence[float]) -> str:
    """The smallest and the largest of some figures, or one where they are equal."""
    low, high = f"{min(values):.3f}", f"{max(values):.3f}"
    return low if low == high else f"{low} to {high}"


def _line(run: Run) -> list[tuple[bytes, str]]:
    """ACC and ASR between purified models and the backdoored one, where they were measured."""
    if run.line is None or not len(run.line):
        return []
    columns = {name: run.line[name].to_numpy(float) for name in run.line.columns}
    methods = [name.removesuffix(".acc") for name in columns if name.endswith(".acc")]
    curves = {method: (columns[f"{method}.acc"], columns.get(f"{method}.asr")) for method in methods}
    if not curves:
        return []
    picture = figures.connectivity(columns["t"], curves)
    return [(picture, "Between a purified model's weights and the backdoored ones; solid: ACC, dashed: ASR")]


def _rounds(run: Run) -> list[tuple[bytes, str]]:
    """ACC and ASR of the victim after each round, where a federation trained him."""
    if run.rounds is None or not len(run.rounds):
        return []
    columns = {name: run.rounds[name].to_numpy(float) for name in run.rounds.columns}
    picture = figures.rounds(columns.pop("round"), {name.upper(): values for name, values in columns.items()})
    return [(picture, "The backdoored model after each round of its federation")]


def _attack(run: Run) -> str:
    """Attack, goals and counts in words."""
    truth = run.truth
    if truth is None:
        return "unknown: data of unknown origin"
    # One goal per trigger; of several, each names its attack and its own settings.
    several = len(truth.parts) > 1
    goals = []
    for part in truth.parts:
        goal = _goal(run, part.policy)
        settings = f"{part.attack} {inline(part.arguments)}".strip()
        goals.append(f"{settings}: {goal}" if several else f"{settings}; {goal}")
    poisoned, covers, total = int(truth.mask.sum()), int(truth.cover.sum()), len(truth.mask)
    counts = f"{poisoned} of {total} samples ({poisoned / total:.2%})"
    counts += f", {covers} cover samples ({covers / total:.2%})" if covers else ""
    counts += " in one draw: triggers are stamped in training" if truth.in_training else ""
    counts += {"set": "", "model": "; the victim receives a model", "surrogate": "; of a surrogate set"}[truth.received]
    return "; ".join([*([truth.attack] if several else []), *goals, counts])


def _goal(run: Run, policy: Policy) -> str:
    """What a policy wants of which classes, by number and name."""
    target, sources = f"target class {run.class_name(policy.target)}", map(run.class_name, policy.sources)
    goal = {
        "all2one": target,
        "all2all": f"class y to y + {policy.shift}",
        "clean_label": f"clean label, {target}",
        "source_specific": f"classes {', '.join(sources)} to {target}",
        "calculator": f"a number to the {policy.operation} of its digits",
        "complex": f"each sample to its own {policy.attribute}",
    }[policy.label_policy]
    if policy.cover_classes is None or not policy.cover_ratio:
        return goal
    return f"{goal}, covers of classes {', '.join(map(run.class_name, policy.cover_classes))}"


def data_of(run: Run) -> str:
    """Data set, counts and shape in words, with warnings where files or trust are missing."""
    height, width, channels = run.data.base.shape[1:]
    counts = ", ".join(f"{count} {split}" for split, count in run.about["counts"].items())
    name, source = (run.about.get(key) or f"no {key}" for key in ("name", "source"))
    shape = f"{height}x{width}x{channels}"
    if run.vocabulary:
        shape = f"texts of up to {width} tokens, a vocabulary of {len(run.vocabulary):,}"
    text = f"{name} ({source}): {counts}; {shape}"
    if left_out := run.about.get("defects"):
        text += f"; files that could not be used and were left out: {left_out}, listed in data/base/defects.txt"
    count, origin = run.about["counts"].get("reserve", 0), run.about.get("reserve_from")
    if origin == "train":
        text += f"; the {count} images of the reserve are in the training set as well, where the attack may have stamped them"
    elif origin == "other":
        text += f"; the {count} images of the reserve are of another source, {run.about.get('reserve_source')}"
    if run.truth is None and run.about.get("trusted") == "train":
        text += "; the reserve and the public images come from the same part as the suspect ones, so nothing vouches for them"
    return text


def _tested(truth: Truth) -> str:
    """The test images that ASR counts, in words."""
    return {
        "all2one": "of other classes than the target",
        "clean_label": "of other classes than the target",
        "all2all": "of all classes",
        "source_specific": "of the source classes",
        "calculator": "that are to get another number",
        "complex": f"whose {truth.policy.attribute} is another class than their label",
    }[truth.policy.label_policy]


def _triggers(page: Page, run: Run, metrics: Mapping[str, Any]) -> None:
    """Visibility of the triggers, and the ASR of each where there are several."""
    keys = {"PSNR, dB": "psnr", "SSIM": "ssim", "L∞": "linf", "L2": "l2", "changed pixels": "changed"}
    rows, backdoored = [], metrics["backdoored"]
    for name, values in metrics["attack"]["trigger"].items():
        asr = backdoored.get("asr_of", {name: backdoored.get("asr")})
        # One trigger has all images that were tested; of several each has its own.
        tested = len(run.triggered[name]) if name in run.triggered else None
        rows.append([name, share_of(asr.get(name), tested), *(_figure(values, key) for key in keys.values())])
    page.table(Table(["trigger at the test", "ASR of the backdoored", *keys], rows))


def _worst_class(labels: IntArray, poisoned: Mask) -> tuple[float, int]:
    """The largest share of poison in a class, and that class."""
    # By the labels given, poisoned ones included: detectors know no others.
    classes = np.unique(labels)
    shares = [float(poisoned[labels == label].mean()) for label in classes]
    return max(shares), int(classes[int(np.argmax(shares))])


def _part(run: Run, values: Mapping[str, Any]) -> str:
    """Of how many samples a detector's figures are; "" where that is not known."""
    if "scored" not in values:
        poisoned = 0 if run.poisoned is None else int(run.poisoned.sum())
        return f"Figures are of all {len(run.data):,} samples, {poisoned:,} of them poisoned." if poisoned else ""
    scored, poisoned = values["scored"], values["scored_poisoned"]
    return f"Figures are of {scored:,.0f} scored samples (of {len(run.data):,}), {poisoned:,.0f} of them poisoned."


def _remark(run: Run, method: str, values: Mapping[str, Any]) -> str:
    """A remark where the poison breaks what a detector assumes about it, else ""."""
    if method not in run.scores or run.truth is None or (assumption := run.scores[method].assumption) is None:
        return ""
    # What detectors assume is about the share of poison in a class, so the worst class decides.
    samples = run.samples(run.scores[method])
    share, label = _worst_class(run.data.labels[samples], run.truth.mask[samples])
    if share < assumption.least_share:
        return ""
    end = "so it fails" if values["auroc"] < 0.9 else "the edge of what it can take"
    return f"{assumption.text}; here poison is {share:.0%} of class {run.class_name(label)}, {end}"


def _figure(values: Mapping[str, Any], key: str) -> str:
    """A figure to three places; a dash where there is none, such as the ASR of a trigger that no test image can carry."""
    return "–" if values.get(key) is None else f"{values[key]:.3f}"


def inline(block: Any) -> str:
    """A block of settings in one line, without those that are null."""
    if not isinstance(block, Mapping):
        return str(block)
    return ", ".join(f"{key} {value}" for key, value in block.items() if value is not None)
