"""Detection: which training samples are suspicious. One file per published method, each with a `Detector`."""

from __future__ import annotations

from . import ac, cd, ss, strip
from .detector import Detector

DETECTORS: dict[str, Detector] = {
    "cd": cd.DETECTOR,
    "ac": ac.DETECTOR,
    "ss": ss.DETECTOR,
    "strip": strip.DETECTOR,
}
