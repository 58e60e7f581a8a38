"""What the originals' own code gave on fixed inputs: no part of the project, so that tests which read it are marked.

What they hold is held by cases computed by hand as well, which run anywhere.
"""

from __future__ import annotations

from pathlib import Path

import pytest

GOLDEN = Path(__file__).resolve().parents[2] / "shared" / "golden"
golden = pytest.mark.skipif(not GOLDEN.exists(), reason="what the originals' own code gave is not part of the project")
