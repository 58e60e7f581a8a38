"""The aggregators by name."""

from __future__ import annotations

from . import foolsgold, krum, mean, median, norm_clipping, trimmed_mean
from .aggregator import Aggregator

AGGREGATORS: dict[str, Aggregator] = {
    "mean": mean.AGGREGATOR,
    "median": median.AGGREGATOR,
    "trimmed_mean": trimmed_mean.AGGREGATOR,
    "krum": krum.AGGREGATOR,
    "norm_clipping": norm_clipping.AGGREGATOR,
    "foolsgold": foolsgold.AGGREGATOR,
}
