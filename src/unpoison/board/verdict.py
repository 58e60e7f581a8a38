"""What the default defence is worth beside the other methods of robust training, on the cells that it was run on."""

from __future__ import annotations

from collections.abc import Sequence

from .cells import Map

DEFAULT, PLACE = "default_defence", "robust"


def beside_others(maps: Sequence[Map]) -> str:
    """The default defence against the best single method, and against the best of all for each cell, which nobody knows
    beforehand; "" where it was not run."""
    (found,) = [found for found in maps if found.family.place == PLACE]
    attacks = [
        attack for (method, attack), cell in found.cells.items() if method == DEFAULT and cell.solved is not None
    ]
    if not attacks:
        return ""
    solved = {
        method: [attack for attack in attacks if found.cells[method, attack].solved]
        for method in found.family.methods
        if method != DEFAULT and all(found.cells[method, attack].solved is not None for attack in attacks)
    }
    own = sum(bool(found.cells[DEFAULT, attack].solved) for attack in attacks)
    said = f"default_defence solves {own} of the {len(attacks)} cells that it was run on and whose attack took"
    if not solved:
        return f"{said}; no other method was run on all of these."
    best = max(solved, key=lambda method: len(solved[method]))
    any_of = len({attack for of_method in solved.values() for attack in of_method})
    return (
        f"{said}. Of the {len(solved)} other methods that were run on all of these the best single one, {best}, solves "
        f"{len(solved[best])}; the best of them for each cell, in hindsight, {any_of}."
    )
