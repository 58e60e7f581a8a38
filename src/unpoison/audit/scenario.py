"""The scenario of an audit: which methods run, on which part of the images, as overrides of the parameters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

TEST_SHARE = 0.3
"""Share of the given images that is held out: ACC and flips are measured on it, and nothing else sees it."""
RESERVE = 0.5
"""Share of the others that is trusted: what inspectors, rules and purifiers work with. The rest are the suspects."""
INSPECTORS = ("neural_cleanse", "mm_bd")
DETECTORS = ("strip", "scale_up", "ibd_psc")


def purifiers_for(*, batch_norm: bool) -> tuple[str, str]:
    """Two purifiers that can do with few trusted images.

    BNP needs one pass over them and no label (Zheng et al., NeurIPS 2022), but a network with batch norm. I-BAU unlearns in a
    few rounds (Zeng et al., ICLR 2022). Without batch norm FST (Min et al., NeurIPS 2023) takes BNP's place: of the methods
    that tune, the one that moves features on purpose. Chosen by what they ask for, not by how they do here.
    """
    return ("bnp" if batch_norm else "fst", "i_bau")


def overrides(
    received: Path, data: Path, *, image_size: int | None, batch_norm: bool, trusted: Path | None = None
) -> dict[str, Any]:
    """What an audit changes in the parameters, by key.

    Args:
        received: folder of the model.
        data: folder or archive of the images.
        image_size: pixels per side; None: as the images are.
        batch_norm: whether the network has any.
        trusted: folder or archive of other images, that are trusted in the place of some of `data`.
    """
    purifiers = list(purifiers_for(batch_norm=batch_norm))
    reserve: dict[str, Any] = {"data.reserve": RESERVE, "data.reserve_from": "held_out"}
    if trusted is not None:
        reserve = {"data.reserve": None, "data.reserve_from": "other", "data.reserve_path": str(trusted)}
    return {
        "received": str(received),
        "data.name": "folder",
        "data.path": str(data),
        "data.image_size": image_size,
        "data.train_limit": None,
        "data.test_share": TEST_SHARE,
        "data.public": 0,
        "data.trusted": "train",
        **reserve,
        # Nobody knows what the model saw, so there is no truth, no control and no attack.
        "attack.name": "none",
        "attack.surrogate.data": False,
        "variations.enabled": False,
        "robust.methods": [],
        "robust.by": {},
        "purify.by": {},
        "detect.canary": [],
        "purify.methods": purifiers,
        "stress.methods": purifiers,
        "stress.reactivation": False,
        "detect.sample": None,
        "detect.inputs": [],
        "visualise.models": [],
        "visualise.figures": [],
        "detect.models": list(INSPECTORS),
        "detect.methods": list(DETECTORS),
    }
