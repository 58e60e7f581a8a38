"""How visible a trigger is, against closed forms and a slow version."""

from __future__ import annotations

import math

import numpy as np
import pytest

from unpoison.core.arrays import Images
from unpoison.evaluation.stealth import Stealth, stealth

RNG = np.random.default_rng(0)
CLEAN = RNG.integers(0, 256, (5, 14, 17, 3), dtype=np.uint8)
NOISE = RNG.integers(-40, 41, CLEAN.shape) * (RNG.random((5, 14, 17, 1)) < 0.3)
STAMPED = (CLEAN + NOISE).clip(0, 255).astype(np.uint8)
STAMPED[3] = CLEAN[3]


def constant(value: int, channels: int = 3) -> Images:
    return np.full((2, 16, 12, channels), value, np.uint8)


def slow_ssim(clean: Images, stamped: Images) -> float:
    """One window of one channel of one image at a time, with centred moments."""
    across = np.exp(-((np.arange(11) - 5.0) ** 2) / (2 * 1.5**2))
    weights = np.outer(across, across) / np.outer(across, across).sum()
    c1, c2 = (0.01 * 255) ** 2, (0.03 * 255) ** 2
    height, width, channels = clean.shape
    values = []
    for channel in range(channels):
        for row in range(height - 10):
            for column in range(width - 10):
                x, y = (
                    image[row : row + 11, column : column + 11, channel].astype(float) for image in (clean, stamped)
                )
                mean_x, mean_y = (weights * x).sum(), (weights * y).sum()
                variance_x, variance_y = (weights * (x - mean_x) ** 2).sum(), (weights * (y - mean_y) ** 2).sum()
                covariance = (weights * (x - mean_x) * (y - mean_y)).sum()
                structure = (2 * covariance + c2) / (variance_x + variance_y + c2)
                values.append((2 * mean_x * mean_y + c1) / (mean_x**2 + mean_y**2 + c1) * structure)
    return float(np.mean(values))


def slow(clean: Images, stamped: Images) -> dict[str, float]:
    rows: dict[str, list[float]] = {"psnr": [], "ssim": [], "linf": [], "l2": [], "changed": []}
    for before, after in zip(clean, stamped, strict=True):
        difference = after.astype(int) - before.astype(int)
        if difference.any():
            rows["psnr"].append(20 * math.log10(255) - 10 * math.log10((difference**2).mean()))
        rows["ssim"].append(slow_ssim(before, after))
        rows["linf"].append(abs(difference).max() / 255)
        rows["l2"].append(float(np.linalg.norm((difference / 255).ravel())))
        rows["changed"].append(float(difference.any(axis=2).mean()))
    return {name: float(np.mean(values)) for name, values in rows.items()}


@pytest.mark.parametrize("channels", [1, 3])
def test_equals_a_slow_version(channels: int) -> None:
    clean, stamped = CLEAN[..., :channels], STAMPED[..., :channels]
    assert stealth(clean, stamped) == pytest.approx(slow(clean, stamped), rel=1e-9)


def test_equal_images_have_no_psnr() -> None:
    assert stealth(CLEAN, CLEAN.copy()) == {"ssim": pytest.approx(1, abs=1e-12), "linf": 0, "l2": 0, "changed": 0}


@pytest.mark.parametrize(("before", "after"), [(100, 140), (0, 255), (7, 6)])
def test_constant_images_differ_in_luminance_alone(before: int, after: int) -> None:
    c1 = (0.01 * 255) ** 2
    step = abs(after - before) / 255
    assert stealth(constant(before), constant(after)) == {
        "psnr": pytest.approx(-20 * math.log10(step)),
        "ssim": pytest.approx((2 * before * after + c1) / (before**2 + after**2 + c1)),
        "linf": pytest.approx(step),
        "l2": pytest.approx(step * math.sqrt(16 * 12 * 3)),
        "changed": 1,
    }


def test_one_changed_channel_is_one_changed_pixel() -> None:
    stamped = constant(10)
    stamped[0, 3, 4, 1] += 51
    measured = stealth(constant(10), stamped)
    # The second image did not change: it halves every mean but that of psnr, which leaves it out.
    assert measured["psnr"] == pytest.approx(10 * math.log10(16 * 12 * 3 / 0.2**2))
    assert (measured["linf"], measured["l2"]) == (pytest.approx(0.1), pytest.approx(0.1))
    assert measured["changed"] == pytest.approx(1 / (16 * 12) / 2)


def test_a_stream_of_chunks_gives_the_means_over_all_images(monkeypatch: pytest.MonkeyPatch) -> None:
    stream = Stealth()
    for chunk in (slice(0, 1), slice(1, 1), slice(1, 4), slice(4, 5)):
        stream.add(CLEAN[chunk], STAMPED[chunk])
    whole = stealth(CLEAN, STAMPED)
    assert stream.result() == pytest.approx(whole, rel=1e-12)
    monkeypatch.setattr("unpoison.evaluation.stealth._CHUNK_BYTES", 2 * CLEAN[0].size)
    assert stealth(CLEAN, STAMPED) == pytest.approx(whole, rel=1e-12)
    assert all(type(value) is float for value in whole.values())


def test_inputs_are_left_alone_and_need_not_be_contiguous() -> None:
    clean, stamped = CLEAN.copy(), STAMPED.copy()
    assert stealth(clean[::2, ::-1], stamped[::2, ::-1]) == pytest.approx(slow(clean[::2, ::-1], stamped[::2, ::-1]))
    np.testing.assert_array_equal(clean, CLEAN)
    np.testing.assert_array_equal(stamped, STAMPED)


@pytest.mark.parametrize(
    ("clean", "stamped", "message"),
    [
        (CLEAN, STAMPED[:4], "of one shape"),
        (CLEAN, STAMPED.astype(np.float32), "two uint8"),
        (CLEAN[0], STAMPED[0], "two uint8"),
        (CLEAN[:0], STAMPED[:0], "no image given"),
    ],
)
def test_what_cannot_be_measured_is_refused(clean: Images, stamped: Images, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        stealth(clean, stamped)


def test_images_smaller_than_the_window_have_no_ssim() -> None:
    assert set(stealth(CLEAN[:, :10], STAMPED[:, :10])) == {"psnr", "linf", "l2", "changed"}
