"""The trigger in the frequency domain: mean spectra of clean images, of triggered ones, and of what the trigger adds.

Zeng et al., "Rethinking the Backdoor Attacks' Triggers: A Frequency Perspective" (2021), section 3: the two-dimensional DCT-II, of
each colour channel. A spectrum is the mean of log(1 + amplitude), for pixels from 0 to 255, so that a coefficient that is not
there counts 0 and none has to be cut off. No model is needed. BackdoorBench's figure of this name is a
map of the frequencies that a model looks at.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.fft import dctn

from ..core.hyperparameters import Count
from ..data.drawings import Drawing, Picture
from . import plots
from .figure import Figure, Scene, csv_of

Spectrum = NDArray[np.float64]
BANDS = 16
CHUNK = 1 << 22  # values that are transformed at once, 32 MiB


def draw(scene: Scene, *, seed: int = 0, images: Count = 500) -> Drawing:
    """Three spectra, and their profiles from low to high frequencies.

    Args:
        seed: seed for the test images.
        images: test images with a trigger that are drawn, at most.
    """
    pairs = scene.pairs(images, seed, "frequency/images")
    step = max(1, CHUNK // int(np.prod(pairs.clean.shape[1:])))
    sums = {kind: np.zeros(pairs.clean.shape[1:3]) for kind in ("clean", "triggered", "residual")}
    for start in range(0, len(pairs), step):
        clean, triggered = (part[start : start + step].astype(np.float64) for part in (pairs.clean, pairs.triggered))
        for kind, part in (("clean", clean), ("triggered", triggered), ("residual", triggered - clean)):
            sums[kind] += spectrum(part) * len(part)
    spectra = {kind: total / len(pairs) for kind, total in sums.items()}
    largest = float(max(spectra["clean"].max(), spectra["triggered"].max()))
    ends = {"clean": largest, "triggered": largest, "residual": float(spectra["residual"].max())}
    captions = {
        "clean": "clean test images",
        "triggered": "the same with the trigger, on the same scale",
        "residual": "what the trigger adds, on a scale of its own",
    }
    # A residual of nothing still has a scale.
    pictures = [
        Picture(name=kind, png=plots.spectrum(one, ends[kind] or 1.0), caption=f"Spectrum: {captions[kind]}")
        for kind, one in spectra.items()
    ]
    centres, profiles = (np.arange(BANDS) + 0.5) / BANDS, {kind: bands(one) for kind, one in spectra.items()}
    there = np.isfinite(profiles["clean"])
    shown = {kind: one[there] for kind, one in profiles.items()}
    png = plots.lines(centres[there], shown, "frequency, share of the highest", "mean of log(1 + amplitude)")
    pictures.append(Picture(name="profile", png=png, caption="Spectra from low to high frequencies"))
    words = f"Mean log spectra (DCT) of {len(pairs):,} test images, low frequencies at the upper left. Photographs fall off "
    words += "towards high frequencies; a residual that does not is what detectors of the frequency domain look for."
    return Drawing(caption=words, pictures=pictures, tables={"profile": csv_of({"frequency": centres, **profiles})})


def spectrum(images: NDArray[np.floating]) -> Spectrum:
    """The mean over images and channels of log(1 + amplitude) of the orthonormal DCT-II: from [n, h, w, c] to float64 [h, w]."""
    amplitudes = np.abs(dctn(images, axes=(1, 2), norm="ortho"))
    mean: Spectrum = np.log1p(amplitudes).mean((0, 3))
    return mean


def bands(spectrum: Spectrum) -> Spectrum:
    """The mean of a spectrum [h, w] in each of `BANDS` rings of equal width, NaN in one that holds no frequency."""
    height, width = spectrum.shape
    rows, columns = np.arange(height)[:, None] / height, np.arange(width)[None] / width
    # What lies on the edge of two rings belongs to the outer one, whatever the last digit.
    ring = np.minimum((np.hypot(rows, columns) / np.sqrt(2) * BANDS + 1e-9).astype(int), BANDS - 1)
    counts = np.bincount(ring.ravel(), minlength=BANDS)
    sums = np.bincount(ring.ravel(), spectrum.ravel(), BANDS)
    return np.where(counts > 0, sums / np.maximum(counts, 1), np.nan)


FIGURE = Figure(draw=draw, needs="trigger")
