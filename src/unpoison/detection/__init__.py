"""Detection: which training samples are suspicious. One file per published method, each with a `Detector`."""

from __future__ import annotations

from . import (
    abl,
    ac,
    beatrix,
    cd,
    ensemble,
    fct,
    frequency,
    ibd_psc,
    onion,
    psbd,
    scale_up,
    scan,
    sentinet,
    separation,
    spectre,
    ss,
    strip,
    strip_text,
    transplant,
)
from .detector import Detector

DETECTORS: dict[str, Detector] = {
    "cd": cd.DETECTOR,
    "ac": ac.DETECTOR,
    "ss": ss.DETECTOR,
    "strip": strip.DETECTOR,
    "abl": abl.DETECTOR,
    "fct": fct.DETECTOR,
    "frequency": frequency.DETECTOR,
    "spectre": spectre.DETECTOR,
    "scan": scan.DETECTOR,
    "beatrix": beatrix.DETECTOR,
    "scale_up": scale_up.DETECTOR,
    "ibd_psc": ibd_psc.DETECTOR,
    "psbd": psbd.DETECTOR,
    "sentinet": sentinet.DETECTOR,
    "ensemble": ensemble.DETECTOR,
    "separation": separation.DETECTOR,
    "transplant": transplant.DETECTOR,
    "strip_text": strip_text.DETECTOR,
    "onion": onion.DETECTOR,
}
INPUT_DETECTORS = {name: detector for name, detector in DETECTORS.items() if detector.single_inputs}
"""Those that also score single inputs at test time."""
