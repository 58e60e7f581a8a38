"""An engine that hands its work on as those do that run elsewhere: pickled, with what it closes over."""

from __future__ import annotations

import pytest

from unpoison.core.sharded import Sharded, in_turn


def copied(work: Sharded) -> None:
    """Make the shards of a copy of the work."""
    cloudpickle = pytest.importorskip("cloudpickle", reason="what the engines of other processes pickle with")
    # No file and nobody else's bytes are read: what is loaded was pickled in the same line, as the engines do with it.
    in_turn(cloudpickle.loads(cloudpickle.dumps(work)))
