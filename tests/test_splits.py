"""Which samples of a source go to which split."""

from __future__ import annotations

import numpy as np
import pytest

from unpoison.core.errors import ParameterError
from unpoison.sources.splits import SplitSettings, arrange, balanced


def test_balanced_draws_are_even_nested_and_seeded() -> None:
    labels = np.array([0] * 50 + [1] * 50 + [2] * 5)
    small, large = balanced(labels, 9, 0, "x"), balanced(labels, 45, 0, "x")
    assert np.bincount(labels[small]).tolist() == [3, 3, 3]
    assert np.bincount(labels[large]).tolist() == [20, 20, 5]
    assert set(small) <= set(large)
    assert (balanced(labels, 9, 0, "x") == small).all()
    assert (balanced(labels, 9, 1, "x") != small).any()


def test_splits_are_disjoint_and_the_limit_moves_nothing_else() -> None:
    labels = {"train": np.arange(200) % 4, "test": np.arange(40) % 4}
    full = arrange(labels, SplitSettings(reserve=20, public=12))
    limited = arrange(labels, SplitSettings(reserve=20, public=12, train_limit=60))
    rows = [full[name][1] for name in ("train", "reserve", "public")]
    assert sorted(np.concatenate(rows).tolist()) == list(range(200))
    assert list(map(len, rows)) == [168, 20, 12]
    for name in ("reserve", "public", "test"):
        assert (full[name][1] == limited[name][1]).all()
    assert set(limited["train"][1]) < set(full["train"][1])
    assert np.bincount(labels["train"][limited["train"][1]]).tolist() == [15] * 4
    trusted = arrange(labels, SplitSettings(reserve=20, public=0, trusted="test"))
    assert trusted["reserve"][0] == "test"
    assert len(trusted["train"][1]) == 200
    assert len(trusted["test"][1]) == 20


def counts(labels: np.ndarray, settings: SplitSettings) -> dict[str, list[int]]:
    splits = arrange({"train": labels}, settings, ("cat", "dog", "emu", "fox"))
    return {name: np.bincount(labels[rows], minlength=labels.max() + 1).tolist() for name, (_, rows) in splits.items()}


def test_draws_leave_a_training_sample_in_every_class() -> None:
    for sizes in ([3, 3, 3, 3], [2, 9, 9, 9], [1, 2, 30, 3], [1, 1, 1, 40]):
        labels = np.repeat(np.arange(4), sizes)
        # The test split takes one of each class that has two.
        left = sum(sizes) - sum(size > 1 for size in sizes)
        for reserve in range(left - 4 + 1):
            found = counts(labels, SplitSettings(reserve=reserve, public=0, test_share=0.01, train_limit=4))
            assert found["train"] == [1, 1, 1, 1]
            assert sum(found["reserve"]) == reserve
        with pytest.raises(ParameterError, match="one stays in every class"):
            counts(labels, SplitSettings(reserve=left - 3, public=0, test_share=0.01))
        spare = sum(sizes) - 4
        # Where the test split takes none: with a part of its own.
        parts = arrange({"train": labels, "test": labels}, SplitSettings(reserve=spare // 2, public=spare - spare // 2))
        assert np.bincount(labels[parts["train"][1]]).tolist() == [1, 1, 1, 1]
        trusted = arrange({"train": labels, "test": labels}, SplitSettings(reserve=spare, public=0, trusted="test"))
        assert np.bincount(labels[trusted["test"][1]]).tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            SplitSettings(reserve=4, public=4),
            r"^reserve: 4 given, allowed: at most 1 of the 4 .*\(the smallest, cat, has 1\)",
        ),
        (SplitSettings(reserve=1, public=1), r"^public: 1 given, allowed: at most 0 of the 3 samples that are left"),
        (
            SplitSettings(reserve=0, public=0, train_limit=2),
            r"^train_limit: 2 given, allowed: at least 3, one training",
        ),
    ],
)
def test_draws_that_would_empty_a_class_name_it(settings: SplitSettings, message: str) -> None:
    labels = np.array([0, 0, 1, 1, 1, 2, 2])
    with pytest.raises(ParameterError, match=message):
        arrange({"train": labels}, settings, ("cat", "dog", "emu"))


@pytest.mark.parametrize(
    ("size", "reserve", "public"), [(8, 2, 2), (40, 10, 10), (300, 50, 60), (2000, 200, 400), (20_000, 600, 1200)]
)
def test_null_is_a_share_of_the_data(size: int, reserve: int, public: int) -> None:
    labels = {"train": np.arange(size) % 2, "test": np.arange(4) % 2}
    splits = arrange(labels, SplitSettings())
    assert [len(splits[name][1]) for name in ("reserve", "public", "train")] == [
        reserve,
        public,
        size - reserve - public,
    ]
    # A smaller set of the same classes never loses one.
    tiny = arrange({"train": np.array([0, 1, 1])}, SplitSettings(test_share=0.01))
    assert len(tiny["reserve"][1]) == 0
    # A part that the source has for it is taken as a whole.
    own = arrange({**labels, "reserve": np.arange(1000) % 2}, SplitSettings())
    assert len(own["reserve"][1]) == 1000
