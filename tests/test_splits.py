"""Which samples of a source go to which split."""

from __future__ import annotations

import numpy as np

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
