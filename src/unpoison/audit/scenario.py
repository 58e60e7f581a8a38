"""The scenario of an audit: which methods run, on which part of the images, as overrides of the parameters."""

from __future__ import annotations

from collections.abc import Mapping
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
    few rounds, and its paper measures it down to 100 images (Zeng et al., ICLR 2022, section 5). Without batch norm FST
    (Min et al., NeurIPS 2023) takes BNP's place: of the tuning methods the one that changes features on purpose.
    """
    return ("bnp" if batch_norm else "fst", "i_bau")
