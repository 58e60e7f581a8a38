"""Read a checkpoint of torch (.pt, .pth) and write its tensors as safetensors, in a process that can do little else.

`conversion.convert` runs this file by itself, without the library. Arguments: the checkpoint, the file to write, the checkpoint's
SHA-256. Prints one line of JSON: `tensors` and `confined`, or `error`, and then ends with status 3.
"""

from __future__ import annotations

import ctypes
import json
import os
import re
import resource
import sys
from collections.abc import Mapping
from typing import Any, NoReturn

NEW_USER, NEW_NETWORK = 0x10000000, 0x40000000
"""Flags of unshare(2): a user of its own, who may have a network of its own, in which there is nobody."""
MORE_MEMORY = 1 << 30
"""Bytes beside four times the checkpoint's."""
SECONDS, OPEN_FILES = 600, 64
WRAPPERS = ("state_dict", "model_state_dict", "model", "net")
"""Keys under which training scripts keep a state dict."""
# What the audit hook ends the process for; of files it looks at those that are opened for writing.
REFUSED = (
    *("socket.", "subprocess.", "ctypes.", "shutil.", "urllib.", "ftplib.", "smtplib.", "webbrowser."),
    *(
        f"os.{call}"
        for call in ("system", "exec", "posix_spawn", "spawn", "fork", "remove", "rename", "rmdir", "link", "symlink")
    ),
    *(f"os.{call}" for call in ("chmod", "chown", "truncate", "putenv", "kill")),
)
TOO_MUCH = "asks for more memory than four times its size and 1 GiB"


def refuse(reason: str) -> NoReturn:
    print(json.dumps({"error": reason}), flush=True)
    os._exit(3)


def without_network() -> bool:
    """Leave the network, where the kernel allows it; before torch, as a process with several threads may not."""
    library = ctypes.CDLL(None, use_errno=True)
    return sys.platform == "linux" and library.unshare(NEW_USER | NEW_NETWORK) == 0


def limit(size: int) -> None:
    """Bound memory, time and files, from what the libraries have taken already."""
    taken = 0
    if os.path.exists("/proc/self/status"):
        with open("/proc/self/status", encoding="ascii") as file:
            taken = next(int(line.split()[1]) << 10 for line in file if line.startswith("VmData"))
    for kind, most in (
        (resource.RLIMIT_DATA, taken + 4 * size + MORE_MEMORY),
        (resource.RLIMIT_FSIZE, 4 * size + MORE_MEMORY),
        (resource.RLIMIT_CPU, SECONDS),
        (resource.RLIMIT_NOFILE, OPEN_FILES),
        (resource.RLIMIT_CORE, 0),
    ):
        resource.setrlimit(kind, (most, most))


def hook(target: str) -> None:
    """From here on an attempt to reach further than this file ends the process."""
    place = os.path.realpath(target)

    def audit(event: str, arguments: tuple[Any, ...]) -> None:
        if event == "open" and isinstance(arguments[0], str | bytes):
            path, mode, flags = arguments
            writes = flags & (os.O_WRONLY | os.O_RDWR | os.O_CREAT | os.O_TRUNC | os.O_APPEND)
            if (writes or set(mode or "") & set("wax+")) and os.path.realpath(os.fsdecode(path)) != place:
                refuse(f"asks for {os.fsdecode(path)!r} to be written")
        elif event.startswith(REFUSED):
            refuse(f"asks for {event}")

    sys.addaudithook(audit)


def reason_of(error: Exception) -> str:
    """Why torch, or what follows, could not read a checkpoint, in words of this project where it is one of the common reasons."""
    text = " ".join(str(error).split())
    if asked := re.search(r"(?:GLOBAL|Unsupported class) (\w+(?:\.\w+)+)", text):
        return f"asks for {asked[1]}, which is no tensor; allowed: a state dict, as `model.state_dict()` gives it"
    if isinstance(error, MemoryError) or re.search("can't allocate|out of memory", text):
        return TOO_MUCH
    # Of torch's advice, which is to load the file whatever is in it, nothing is passed on.
    said = text.rpartition("WeightsUnpickler error: ")[2].partition(" Check the documentation")[0]
    return f"not readable as weights ({type(error).__name__}: {said[:200]})"


def tensors_of(loaded: Any, kind: type) -> Mapping[str, Any]:
    """The state dict in what a checkpoint holds: itself, or under one of the usual keys."""
    for _ in range(3):
        if isinstance(loaded, Mapping) and loaded and all(isinstance(value, kind) for value in loaded.values()):
            return loaded
        inner = [
            loaded[key] for key in WRAPPERS if isinstance(loaded, Mapping) and isinstance(loaded.get(key), Mapping)
        ]
        if len(inner) != 1:
            break
        loaded = inner[0]
    found = ", ".join(map(repr, list(loaded)[:8])) if isinstance(loaded, Mapping) else type(loaded).__name__
    refuse(
        f"no state dict found but {found[:200]}; allowed: tensors by name, by themselves or under {', '.join(WRAPPERS)}"
    )


def plain(state: Mapping[str, Any]) -> dict[str, Any]:
    """Tensors of their own, under names without what a wrapper for several processes puts in front of each."""
    import torch

    prefix = "module." if all(str(name).startswith("module.") for name in state) else ""
    kept: dict[str, Any] = {}
    for name, value in state.items():
        if not isinstance(name, str) or not name.isprintable() or len(name) > 200:
            refuse(f"a tensor named {name!r:.100}, allowed: printable text of up to 200 characters")
        if value.layout != torch.strided or value.is_quantized or value.device.type != "cpu":
            refuse(f"{name}: a tensor that is sparse or quantised, allowed: dense numbers")
        kept[name.removeprefix(prefix)] = value.detach().clone(memory_format=torch.contiguous_format)
    return kept


def main(source: str, target: str, digest: str) -> None:
    alone = without_network()
    import torch
    from safetensors.torch import save_file

    torch.set_num_threads(1)
    limit(os.path.getsize(source))
    hook(target)
    try:
        kept = plain(tensors_of(torch.load(source, map_location="cpu", weights_only=True), torch.Tensor))
        save_file(kept, target, metadata={"converted_from_sha256": digest})
    except Exception as error:  # whatever a damaged file makes of torch's reader: nothing of it is used
        refuse(reason_of(error))
    print(json.dumps({"tensors": len(kept), "confined": alone}), flush=True)


if __name__ == "__main__":
    main(*sys.argv[1:])
