"""Turn a checkpoint of torch into safetensors, once: `python -m unpoison.models.conversion model.pt model.safetensors`.

A .pt file is a pickle, and reading a pickle may run what is in it. torch can read it as tensors alone (`weights_only`); that
happens in a process of its own besides, with no network, little memory and one file that it may write.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from pathlib import Path

from ..core.errors import UserError
from ..core.files import check_regular, new_file, sha256_file
from ..core.weights import Weights
from . import confined

GRACE = 60
"""Seconds beside those that the process may compute."""


@dataclass(frozen=True)
class Converted:
    """What became of a checkpoint.

    Attributes:
        tensors: number of tensors.
        digest: SHA-256 of the checkpoint, which the new file names as well.
        confined: whether the process had no network by the kernel's word; else an audit hook alone kept it off.
    """

    tensors: int
    digest: str
    confined: bool


def convert(source: Path, target: Path) -> Converted:
    """Write the tensors of a checkpoint as safetensors.

    Args:
        source: checkpoint (.pt, .pth) that holds a state dict.
        target: safetensors file to make.

    Raises:
        UserError: names the file and what it asks for or lacks; `target` is not touched then.
    """
    if target.suffix != ".safetensors":
        raise UserError(f"{target}: given as the file to write, allowed: a name that ends in .safetensors")
    if os.path.lexists(target):
        raise UserError(f"{target}: exists, allowed: a new name")
    check_regular(source)
    digest = sha256_file(source)
    with new_file(target) as staging, tempfile.TemporaryDirectory() as empty:
        # Isolated: no variable and no folder of the user's decides what is imported.
        command = [sys.executable, "-I", confined.__file__, str(source.resolve()), str(staging.resolve()), digest]
        try:
            done = subprocess.run(
                command,
                cwd=empty,
                env={"OMP_NUM_THREADS": "1", "PATH": os.defpath},
                stdin=subprocess.DEVNULL,
                capture_output=True,
                timeout=confined.SECONDS + GRACE,
            )
        except subprocess.TimeoutExpired:
            raise UserError(f"{source}: not read after {confined.SECONDS + GRACE} s, allowed: less") from None
        lines = done.stdout.decode("utf-8", "backslashreplace").splitlines()
        if done.returncode not in (0, 3) or len(lines) != 1:
            ended = f"signal {-done.returncode}" if done.returncode < 0 else f"status {done.returncode}"
            raise UserError(
                f"{source}: reading it ended with {ended}; allowed: a state dict that can be read in bounded memory"
            )
        said = json.loads(lines[0])
        if "error" in said:
            raise UserError(f"{source}: {said['error']}")
        if sha256_file(source) != digest:
            raise UserError(f"{source}: changed while it was read, allowed: a file that nobody writes")
        # What another process wrote is looked at like any file.
        try:
            written = Weights(staging).read()
        except UserError as error:
            raise UserError(f"{source}: {str(error).removeprefix(f'{staging}: ')}") from None
        if len(written) != said["tensors"]:
            raise UserError(f"{source}: {said['tensors']} tensors announced, {len(written)} written")
    return Converted(said["tensors"], digest, said["confined"])


def main() -> None:
    """The command line. Raises SystemExit with one line for what the user can put right."""
    if len(sys.argv) != 3:
        sys.exit("error: arguments: allowed: a checkpoint (.pt, .pth) and a new .safetensors file")
    try:
        converted = convert(Path(sys.argv[1]), Path(sys.argv[2]))
    except UserError as error:
        sys.exit(f"error: {error}")
    by = "without a network" if converted.confined else "with the network refused by a hook alone"
    print(f"{sys.argv[2]}: {converted.tensors} tensors of {sys.argv[1]} (SHA-256 {converted.digest}), read {by}")


if __name__ == "__main__":
    main()
