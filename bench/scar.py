"""Whether a teacher whose backdoor sleeps wakes it in a student that is distilled on clean images: SCAR beside a clean teacher.

    python bench/scar.py             # prints a table and adds it to bench/results/scar.csv
    python bench/scar.py --check     # the hypergradient against the published iteration and against differences, in a second
    python bench/scar.py --quick     # a few images, prints only: whether it runs at all

SCAR (Chen et al., "Taught Well Learned Ill: Towards Distillation-conditional Backdoor Attack", NeurIPS 2025): the teacher is
trained so that it withstands a trigger, and so that a student that learns of it on clean images does not. Published code:
https://github.com/WhitolfChen/SCAR. In three steps:

    1. A clean teacher, a student distilled from it, and one pattern of at most 0.1 of the range, added to an image, that sends both
       to the target.
    2. By rounds: a student is distilled from the teacher as it stands; then the teacher takes steps on batches of
           CE(teacher(x), y) + CE(teacher(x + trigger), y) + CE(student(x), y) + CE(student(x + trigger), target),
       whose last two terms depend on it by what the student would learn: see `implicit`.
    3. Students of both teachers by `unpoison.robust.distillation`.

Published are 200 rounds of 20 epochs with Adam on CIFAR-10. Here the rounds are few and of the recipe `small`, as Adam has learned
nothing after so few steps; what a student would learn is one forward derivative, not up to a hundred products with a Hessian,
and counts for more (`--reach`), as there are few steps in which to learn it.

Rows are a teacher itself, or a student of one:

    data       clean: the training images, variations of perfect quality; worn: the same, blurred by a binomial filter of 3x3, with
               noise of 8 levels
    loss       block: that of params/robust.yaml; published: SCAR's, the halves of CE and of KL at temperature 1; labels: CE alone
    acc, asr   share of test images that get their label, and of triggered ones of other classes that get the target

The trigger misleads clean networks as well, by how it is made. What a teacher wakes is what its students have beyond those of the
clean teacher, and beyond those of the labels alone, from the same first weights.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator, Sequence
from copy import deepcopy
from functools import partial
from itertools import islice
from math import cos, pi
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.func import functional_call, jvp

from pairs import ROOT, report
from unpoison import models
from unpoison.compute.device import pick_device
from unpoison.compute.inference import logits_of
from unpoison.core.arrays import Images
from unpoison.core.seeding import derive, torch_rng
from unpoison.core.yaml_file import parse_yaml
from unpoison.data.imageset import ImageSet
from unpoison.evaluation.metrics import accuracy
from unpoison.models.classifier import Classifier
from unpoison.robust import distillation
from unpoison.sources import digits
from unpoison.training import augment
from unpoison.training.loop import fit
from unpoison.training.recipes import recipe_named

TARGET = 0
EPSILON = 0.1
PUBLISHED: dict[str, Any] = {"alpha": 0.5, "temperature": 1.0, "ce_temperature": 1.0}
STEP, ITERATIONS = 1e-5, 100
"""Of the published fixed point."""


def implicit(teacher: Tensor, student: Callable[..., Tensor], weights: Sequence[Tensor], outer: Tensor) -> Tensor:
    """What the outer loss owes to the teacher through the student, over `STEP * ITERATIONS`; its gradient is the hypergradient.

    The published fixed point, v = g + (1 - a H) v from 0 with a = 1e-5 and at most 100 times, is v = 100 g but for a * 100 * H, and
    then the teacher's gradient is that of -a * 100 * <dL_in/dw, g>. Of L_in only the KL's mean of p_teacher * log p_student depends
    on both, so that this is the teacher's mean probability of each class times the class' slope along g: one forward derivative.

    Args:
        teacher: the teacher's logits of a batch, with gradients.
        student: from weights to the student's logits of the same batch.
        weights: the student's.
        outer: the outer loss of them.
    """
    along = torch.autograd.grad(outer, weights)
    slope = jvp(
        lambda *given: student(given).log_softmax(1), tuple(weight.detach() for weight in weights), tuple(along)
    )[1]
    return (teacher.softmax(1) * slope.detach()).sum(1).mean()


def fixed_point(
    inner: Callable[[Sequence[Tensor]], Tensor], weights: Sequence[Tensor], outer: Tensor, wanted: Sequence[Tensor]
) -> tuple[Tensor, ...]:
    """The implicit part of the teacher's gradient as published.

    Args:
        inner: from the student's weights to L_in, with gradients of the teacher's.
        weights: the student's.
        outer: the outer loss of them.
        wanted: the teacher's weights.
    """
    along = torch.autograd.grad(outer, weights)
    gradient = torch.autograd.grad(inner(weights), weights, create_graph=True)
    moved = [weight - STEP * each for weight, each in zip(weights, gradient, strict=True)]
    v = tuple(torch.zeros_like(each) for each in along)
    for _ in range(ITERATIONS):
        back = torch.autograd.grad(moved, weights, v, retain_graph=True)
        v = tuple(each + g for each, g in zip(back, along, strict=True))
    return torch.autograd.grad(moved, wanted, v)


def check() -> None:
    """Prints how alike the hypergradients of one batch are: of tiny networks, in double precision."""
    torch.manual_seed(0)
    images, labels = torch.rand(16, 3, 6, 6, dtype=torch.float64), torch.arange(16) % 4
    layers = (nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.Linear(64, 4))
    teacher, student = (
        nn.Sequential(*layers),
        nn.Sequential(nn.Flatten(), nn.Linear(108, 8), nn.ReLU(), nn.Linear(8, 4)),
    )
    for network in (teacher.double().train(), student.double().eval()):
        network(images)
    names = list(dict(student.named_parameters()))
    weights, own = list(student.parameters()), list(teacher.parameters())

    def answers(images: Tensor, given: Sequence[Tensor]) -> Tensor:
        return functional_call(student, dict(zip(names, given, strict=True)), (images,))

    def inner(given: Sequence[Tensor]) -> Tensor:
        logits = answers(images, given)
        taught = F.kl_div(logits.log_softmax(1), teacher(images).softmax(1), reduction="batchmean")
        return F.cross_entropy(logits, labels) + taught

    def outer(given: Sequence[Tensor]) -> Tensor:
        return F.cross_entropy(answers(images, given), labels) + F.cross_entropy(
            answers((images + EPSILON).clamp(0, 1), given), torch.zeros_like(labels)
        )

    cheap = implicit(teacher(images), partial(answers, images), weights, outer(weights))
    ours = nn.utils.parameters_to_vector(torch.autograd.grad(cheap, own)) * STEP * ITERATIONS
    published = nn.utils.parameters_to_vector(fixed_point(inner, weights, outer(weights), own))

    # By differences: what the outer loss is after a step of a * 100 along the inner one, for two values of each of the biases.
    def after() -> float:
        gradient = torch.autograd.grad(inner(weights), weights)
        return float(outer([w - STEP * ITERATIONS * each for w, each in zip(weights, gradient, strict=True)]))

    weight, differences = own[-1].data, []
    for place in range(len(weight)):
        weight[place] += 1e-3
        above = after()
        weight[place] -= 2e-3
        differences.append((above - after()) / 2e-3)
        weight[place] += 1e-3
    print(f"cosine with the published iteration: {F.cosine_similarity(ours, published, dim=0):.6f}")
    print(f"ratio of their norms: {ours.norm() / published.norm():.6f}")
    print(f"gradient of the head's biases: {[f'{float(value):.3e}' for value in ours[-len(weight) :]]}")
    print(f"by differences:                {[f'{value:.3e}' for value in differences]}")


def batches(data: ImageSet, size: int, seed: int, *keys: int | str) -> Iterator[tuple[Tensor, Tensor]]:
    """Without end: shuffled batches of images, float [b, c, h, w] in [0, 1] and moved as the recipe moves them, and labels."""
    generator, epoch = torch_rng(seed, "scar", *keys), 0
    while True:
        for index in torch.randperm(len(data), generator=generator).split(size):
            drawn = augment.draw(["translate"], augment.Batch(index, epoch, data.image_size, generator))
            images = augment.apply(data.tensor(index.numpy()).float() / 255, ["translate"], drawn)
            yield images.to(pick_device()), torch.from_numpy(data.labels[index.numpy()]).to(pick_device())
        epoch += 1


def optimised_trigger(networks: Sequence[Classifier], train: ImageSet, *, steps: int, seed: int) -> Tensor:
    """What is added to images, float [c, h, w], so that all the networks, which stay as they are, see the target."""
    size = (train.channels, *train.image_size)
    trigger = torch.rand(size, generator=torch_rng(seed, "scar/trigger")).to(pick_device()).requires_grad_()
    optimizer = torch.optim.Adam([trigger], lr=0.01)
    for step, (images, labels) in enumerate(islice(batches(train, 128, seed, "trigger"), steps)):
        wanted = torch.full_like(labels, TARGET)
        stamped = (images + trigger).clamp(0, 1)
        loss = sum((F.cross_entropy(network(stamped), wanted) for network in networks), torch.zeros(()).to(images))
        optimizer.param_groups[0]["lr"] = 0.01 * (1 + cos(pi * step / steps)) / 2
        (trigger.grad,) = torch.autograd.grad(loss, trigger)
        optimizer.step()
        trigger.data.clamp_(-EPSILON, EPSILON)
    return trigger.detach()


def learn_round(
    teacher: Classifier,
    student: Classifier,
    trigger: Tensor,
    drawn: Iterator[tuple[Tensor, Tensor]],
    optimizer: torch.optim.Optimizer,
    *,
    steps: int,
    reach: float,
) -> dict[str, float]:
    """Steps of the teacher, with a student that stays; what each part of its gradient was in the last one."""
    # The first convolution is what the recipe's whitening made it: no student learns it.
    names = [name for name, _ in student.named_parameters()][1:]
    weights = [weight for _, weight in student.named_parameters()][1:]
    own = list(teacher.parameters())
    student.eval()
    teacher.train()
    for images, labels in islice(drawn, steps):
        stamped = (images + trigger).clamp(0, 1)
        wanted = torch.full_like(labels, TARGET)
        outer = F.cross_entropy(student(images), labels) + F.cross_entropy(student(stamped), wanted)
        # In one pass: batch norm's running statistics, which the teacher is used with, are then those that it is trained with.
        logits = teacher(torch.cat([images, stamped]))
        clean, triggered = logits.chunk(2)
        direct = F.cross_entropy(clean, labels) + F.cross_entropy(triggered, labels)

        def answers(given: Sequence[Tensor], images: Tensor = images) -> Tensor:
            return functional_call(student, dict(zip(names, given, strict=True)), (images,))

        taught = reach * implicit(clean, answers, weights, outer)
        parts = [torch.autograd.grad(part, own, retain_graph=True) for part in (direct, taught)]
        for weight, one, other in zip(own, *parts, strict=True):
            weight.grad = one + other
        optimizer.step()
    teacher.eval()
    norms = [float(torch.stack([each.norm() for each in part]).norm()) for part in parts]
    return {"direct": direct.item(), "outer": outer.item(), "g_direct": norms[0], "g_implicit": norms[1]}


def worn(data: ImageSet, seed: int) -> ImageSet:
    """The images blurred by a binomial filter of 3x3, with noise of 8 levels."""
    line = torch.tensor([0.25, 0.5, 0.25])
    kernel = (line[:, None] * line).expand(data.channels, 1, 3, 3)
    images = F.conv2d(F.pad(data.tensor().float(), (1, 1, 1, 1), mode="reflect"), kernel, groups=data.channels)
    images += 8 * torch.randn(images.shape, generator=torch_rng(seed, "scar/noise"))
    pixels = images.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return ImageSet(pixels, data.labels, data.classes)


def stamped(data: ImageSet, trigger: Tensor) -> ImageSet:
    """The images of the other classes with the trigger, in whole levels, and the target as their label."""
    rows = np.flatnonzero(data.labels != TARGET)
    images = data.tensor(rows).float() + 255 * trigger.cpu()
    pixels: Images = images.round().clamp(0, 255).to(torch.uint8).permute(0, 2, 3, 1).numpy()
    return ImageSet(pixels, np.full(len(rows), TARGET), data.classes)


class Bench:
    """The networks and what is measured of them."""

    def __init__(self, given: argparse.Namespace) -> None:
        self.given, self.seed = given, given.seed
        made = digits.build({"train": given.train, "test": given.test})
        self.train, self.test = (ImageSet(*made[name], digits.CLASSES) for name in ("train", "test"))
        self.build = partial(models.build, num_classes=10, image_size=(32, 32))

    def network(self, *keys: int | str, name: str = "resnet18") -> Classifier:
        own: dict[str, Any] = {"stem": "conv3_pool"} if name == "resnet18" else {}
        return self.build(name, width=self.given.width, seed=derive(self.seed, "scar/network", *keys) % 2**31, **own)

    def student(
        self, teacher: Classifier, data: ImageSet, epochs: int, *keys: int | str, name: str = "resnet18", **loss: Any
    ) -> Classifier:
        recipe = recipe_named({"recipe": "small", "epochs": epochs})
        seed = derive(self.seed, "scar/student", *keys) % 2**31
        network, _ = distillation.train(
            lambda: self.network(*keys, name=name),
            data,
            teacher,
            data.subset(np.arange(0)),
            recipe,
            seed=seed,
            **loss,
        )
        return network

    def clean_teacher(self) -> Classifier:
        teacher = self.network("teacher")
        fit(
            teacher,
            self.train,
            recipe_named({"recipe": "small", "epochs": self.given.epochs}),
            seed=self.seed,
            what="teacher",
        )
        return teacher

    def figures(self, network: Classifier, trigger: Tensor) -> dict[str, float]:
        triggered = stamped(self.test, trigger)
        return {
            "acc": round(accuracy(logits_of(network, self.test), self.test.labels), 3),
            "asr": round(accuracy(logits_of(network, triggered), triggered.labels), 3),
        }

    def poison(self, teacher: Classifier, trigger: Tensor) -> None:
        """The rounds, on the teacher in place; prints how it goes."""
        optimizer = torch.optim.Adam(teacher.parameters(), lr=self.given.lr)
        drawn = batches(self.train, 128, self.seed, "outer")
        for number in range(self.given.rounds):
            student = self.student(teacher, self.train, self.given.inner, "inner", number, **PUBLISHED)
            optimizer.param_groups[0]["lr"] = self.given.lr * (1 + cos(pi * number / self.given.rounds)) / 2
            found = {f"student_{name}": value for name, value in self.figures(student, trigger).items()}
            found |= learn_round(
                teacher, student, trigger, drawn, optimizer, steps=self.given.steps, reach=self.given.reach
            )
            found |= self.figures(teacher, trigger)
            print(number, " ".join(f"{name}={value:.3g}" for name, value in found.items()), flush=True)


LOSSES: dict[str, Callable[[], dict[str, Any]]] = {
    "block": lambda: parse_yaml((ROOT / "params" / "robust.yaml").read_bytes(), "params/robust.yaml")["distillation"],
    "published": lambda: PUBLISHED,
    "labels": lambda: {"alpha": 0.0},
}
STUDENTS = (
    *(
        (name, "resnet18", "clean", loss, student)
        for loss in ("published", "block")
        for student in (0, 1)
        for name in ("clean", "scar")
    ),
    *(("none", "resnet18", "clean", "labels", student) for student in (0, 1)),
    *((name, "resnet18", "worn", loss, 0) for loss in ("published", "block") for name in ("clean", "scar")),
    *((name, "compact", "clean", "published", 0) for name in ("clean", "scar")),
)
"""Teacher, the student's network, its images, its loss, and its number, from which it has its weights and its order."""


def measure(given: argparse.Namespace) -> None:
    """All networks, and a row for each as they come."""
    bench = Bench(given)
    same = {
        "seed": given.seed,
        "rounds": given.rounds,
        "reach": given.reach,
        "train": given.train,
        "test": given.test,
        "width": given.width,
        "student_epochs": given.student_epochs,
    }

    def row(teacher: str, network: Classifier, *about: Any) -> None:
        names = ("student", "data", "loss", "number")
        found = {
            "teacher": teacher,
            **dict(zip(names, about or 4 * ("",), strict=True)),
            **bench.figures(network, trigger),
            **same,
        }
        report([found], "scar.csv", write=not given.quick)

    teacher = bench.clean_teacher()
    first = bench.student(teacher, bench.train, given.epochs, "clean", **PUBLISHED)
    trigger = optimised_trigger([teacher, first], bench.train, steps=given.trigger_steps, seed=given.seed)
    row("clean", teacher)
    # It is what the trigger was made for besides its teacher, and none of those below.
    print("the trigger's student:", bench.figures(first, trigger), flush=True)
    sleeping = deepcopy(teacher)
    bench.poison(sleeping, trigger)
    row("scar", sleeping)
    teachers, data = (
        {"clean": teacher, "scar": sleeping, "none": teacher},
        {"clean": bench.train, "worn": worn(bench.train, given.seed)},
    )
    for of, name, images, loss, number in STUDENTS:
        # The same first weights and order whoever teaches: a pair differs in the teacher alone.
        keys, own = ("measured", number), LOSSES[loss]()
        student = bench.student(teachers[of], data[images], given.student_epochs, *keys, name=name, **own)
        row(of, student, name, images, loss, number)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--train", type=int, default=2000, help="images that all train on")
    parser.add_argument("--test", type=int, default=1000)
    parser.add_argument("--width", type=int, default=8, help="of all networks")
    parser.add_argument("--epochs", type=int, default=20, help="of the clean teacher and the trigger's student")
    parser.add_argument("--student-epochs", type=int, default=12, help="of the students that are measured")
    parser.add_argument("--trigger-steps", type=int, default=150)
    parser.add_argument(
        "--rounds", type=int, default=8, help="students that the teacher is trained with, one after another"
    )
    parser.add_argument("--inner", type=int, default=6, help="epochs of each of them")
    parser.add_argument("--steps", type=int, default=24, help="of the teacher with each of them (published: 40)")
    parser.add_argument(
        "--lr", type=float, default=1e-3, help="of the teacher's Adam, falling as a cosine over the rounds"
    )
    parser.add_argument(
        "--reach", type=float, default=0.02, help="weight of what the student learns (published: 0.001)"
    )
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--check", action="store_true", help="the hypergradient alone")
    parser.add_argument(
        "--quick", action="store_true", help="few images and rounds, nothing written: whether it runs at all"
    )
    given = parser.parse_args()
    if given.check:
        check()
        return
    if given.quick:
        small = {
            "train": 256,
            "test": 100,
            "epochs": 2,
            "student_epochs": 2,
            "trigger_steps": 4,
            "rounds": 1,
            "inner": 1,
            "steps": 2,
        }
        vars(given).update(small)
    measure(given)


if __name__ == "__main__":
    main()
