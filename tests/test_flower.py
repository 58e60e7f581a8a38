"""The clients of a federation as nodes of Flower's simulation engine: the same bytes, and what goes wrong in a worker."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from small_federation import RECIPE, trained
from unpoison.core.errors import ParameterError
from unpoison.federation.flower import simulated
from unpoison.federation.layout import Layout
from unpoison.federation.settings import Federation

pytest.importorskip("flwr.simulation", reason="an extra: pip install '.[federated]'")
pytest.importorskip("ray", reason="an extra: pip install '.[federated]'")
SMALL = Federation(clients=4, per_round=2, rounds=2, local_epochs=1, attackers=1, clip=5.0, noise=0.01)


def test_the_same_bytes_as_clients_in_turn() -> None:
    (here, record), (there, again) = trained(SMALL), trained(SMALL, engine=simulated)
    layout = Layout(here)
    assert torch.equal(layout.vector(here), layout.vector(there))
    assert record.epochs == again.epochs
    assert np.array_equal(record.losses, again.losses, equal_nan=True)


def test_a_clients_error_is_one_line_here() -> None:
    with pytest.raises(
        ParameterError, match=r"^lr: 1e\+20 given, with which the training of test, round 1, client \d diverged"
    ):
        trained(SMALL, recipe=replace(RECIPE, lr=1e20), engine=simulated)
