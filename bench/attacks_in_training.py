"""Images per second of a victim's training with an attacker's hand in it, against the same training without one.

    python bench/attacks_in_training.py                # prints a table and adds it to bench/results/attacks_in_training.csv
    python bench/attacks_in_training.py --quick        # a few images, one run, prints only

The network is `compact` of width 32, images are 32 x 32 noise, batches are of 250: an epoch each, in turns. The peak memory of
each way is that of a process of its own.
"""

from __future__ import annotations

import subprocess
import sys
from typing import Any

import numpy as np

from pairs import arguments, by_turns, report, row, timed
from unpoison import models
from unpoison.attacks import ATTACKS as TABLE
from unpoison.attacks import hand_of
from unpoison.crafting.attack import intents_of
from unpoison.crafting.context import Context
from unpoison.crafting.craft import craft
from unpoison.data.imageset import ImageSet
from unpoison.training.loop import fit
from unpoison.training.recipe import Recipe

ATTACKS: dict[str, tuple[str, dict[str, Any]]] = {
    "wanet": ("wanet", {}),
    "bpp": ("bpp", {}),
    "bpp, dithered": ("bpp", {"dither": True}),
    "blind": ("blind", {}),
    "blind, mgda": ("blind", {"balance": "mgda"}),
    "bypass": ("bypass", {}),
    "sam_attacker": ("sam_attacker", {}),
    "input_aware": ("input_aware", {}),
    "lira": ("lira", {}),
}
PLAIN = "no hand"
# In three epochs of the victim there is one of the mask network, the published proportion.
EPOCHS = {"input_aware": 3}


def epoch(way: str, images: int) -> float:
    """Images per second of an epoch."""
    rng = np.random.default_rng(0)
    data = ImageSet(
        rng.integers(0, 256, (images, 32, 32, 3), dtype=np.uint8), np.arange(images) % 10, tuple("0123456789")
    )
    hand = None
    if way != PLAIN:
        name, own = ATTACKS[way]
        intents = intents_of(name, TABLE, {}, {name: own})
        hand = hand_of(craft(name, intents, Context(train=data, seed=0)), data, seed=0)
    model = models.build("compact", num_classes=10, image_size=(32, 32), width=32, seed=0)
    epochs = EPOCHS.get(way, 1)
    recipe = Recipe(epochs=epochs, batch_size=250, augment=("translate", "flip"))
    return epochs * images / timed(lambda: fit(model, data, recipe, seed=0, what="bench", hand=hand))


def peak_mib(way: str, images: int) -> float:
    """Largest resident memory of a process that trains so for one epoch, MiB."""
    code = f"from attacks_in_training import epoch; epoch({way!r}, {images}); import resource as r; "
    code += "print(r.getrusage(r.RUSAGE_SELF).ru_maxrss)"
    said = subprocess.check_output([sys.executable, "-c", code], text=True, cwd=sys.path[0])
    scale = 2**20 if sys.platform == "darwin" else 2**10
    return int(said.split()[-1]) / scale


def main() -> None:
    given = arguments(__doc__, runs=5)
    images = 1_000 if given.quick else 5_000
    # First: on Linux a process starts with the peak of the one that it was started by.
    memory = {way: peak_mib(way, images) for way in (PLAIN, *ATTACKS)}
    rates = by_turns({way: lambda way=way: epoch(way, images) for way in (PLAIN, *ATTACKS)}, given.runs)
    rows = [row("an epoch", rates, way, PLAIN) for way in ATTACKS]
    for line in rows:
        line["memory"] = round(memory[line["way"]] / memory[PLAIN], 2)
    report(rows, "attacks_in_training.csv", write=not given.quick)


if __name__ == "__main__":
    main()
