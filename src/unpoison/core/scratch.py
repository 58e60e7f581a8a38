"""Empty the folder of unfinished and reusable work: `python -m unpoison.core.scratch FOLDER`, for `make clean-scratch`."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path


def size_of(path: Path) -> int:
    """Bytes of a file, or of all files below a folder; links count for themselves."""
    if path.is_dir() and not path.is_symlink():
        return sum(map(size_of, path.iterdir()))
    return path.lstat().st_size


def empty(folder: Path) -> str:
    """Remove all that lies in a folder, and say how much that was: a line per entry, the largest first, and the sum."""
    sizes = {path: size_of(path) for path in folder.iterdir()} if folder.is_dir() else {}
    for path in sizes:
        if path.is_dir() and not path.is_symlink():
            shutil.rmtree(path)
        else:
            path.unlink()
    largest = sorted(sizes, key=lambda path: (-sizes[path], path.name))
    lines = [f"{path}: {sizes[path] / 2**20:.1f} MiB" for path in largest]
    return "\n".join([*lines, f"freed: {sum(sizes.values()) / 2**20:.1f} MiB"])


if __name__ == "__main__":
    print(empty(Path(sys.argv[1])))
