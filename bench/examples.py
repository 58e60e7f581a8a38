"""The Python examples of a page as one program: `python bench/examples.py docs/library.md`.

It runs with whatever `unpoison` the interpreter finds, as a reader's would, and without DVC, which is refused.
"""

from __future__ import annotations

import argparse
import re
import sys
import time
from pathlib import Path
from typing import Any

_FENCE = re.compile(r"^```python\n(.*?)^```$", re.MULTILINE | re.DOTALL)


def examples_of(page: Path) -> list[str]:
    """The blocks of a page that are marked as Python, in their order, padded so that an error has the page's line."""
    text = page.read_text(encoding="utf-8")
    return ["\n" * text.count("\n", 0, found.start(1)) + found[1] for found in _FENCE.finditer(text)]


def run(page: Path, names: dict[str, Any], blocks: list[str]) -> None:
    """Run blocks of a page in the order given; what they define is in `names` afterwards."""
    for block in blocks:
        exec(compile(block, str(page), "exec"), names)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("page", type=Path)
    page = parser.parse_args().page
    # From here on `import dvc` fails, whether it is installed or not.
    sys.modules["dvc"] = None  # type: ignore[assignment]
    blocks, start = examples_of(page), time.perf_counter()
    if not blocks:
        print(f"error: {page}: no example found, allowed: a page with blocks marked as python", file=sys.stderr)
        return 1
    names: dict[str, Any] = {"__name__": "__main__"}
    run(page, names, blocks)
    import unpoison

    took = time.perf_counter() - start
    print(
        f"{page}: {len(blocks)} examples in {took:.0f} s with unpoison {unpoison.__version__} of {unpoison.__path__[0]}"
    )
    return 0


if __name__ == "__main__":
    sys.exit(main())
