"""A `python` for tests that starts stages without importing torch each time.

`with preloaded(folder):` puts a program `python` into `folder`, to be first on PATH. It hands a script of stages to a
process that has imported the libraries, not the project's own code, and waits for a copy of that process to run it: as
`python SCRIPT ARGUMENTS` would, with the same directory, environment, streams and exit status. Everything else it runs itself.
"""

from __future__ import annotations

import array
import json
import os
import runpy
import shutil
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

CLIENT = """#!{python} -IS
import array, json, os, socket, sys
arguments = sys.argv[1:]
if not arguments or not arguments[0].startswith("stages/"):
    os.execv({python!r}, [{python!r}, *arguments])
with socket.socket(socket.AF_UNIX) as server:
    server.connect({address!r})
    request = json.dumps([arguments, os.getcwd(), dict(os.environ)], ensure_ascii=True).encode() + b"\\n"
    server.sendmsg([request[:1]], [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", [0, 1, 2]))])
    server.sendall(request[1:])
    status = server.recv(16)
sys.exit(int(status or 1))
"""


@contextmanager
def preloaded(folder: Path) -> Iterator[None]:
    """The program in a new folder, for as long as the block runs."""
    folder.mkdir(parents=True)
    # The address of a socket has little room, so it is not in the folder of the test.
    with tempfile.TemporaryDirectory() as short:
        address = f"{short}/python"
        program = folder / "python"
        program.write_text(CLIENT.format(python=sys.executable, address=address))
        program.chmod(0o755)
        server = subprocess.Popen([sys.executable, __file__, address])
        try:
            while not Path(address).exists():
                assert server.poll() is None, "the process with the libraries has ended"
                time.sleep(0.01)
            yield
        finally:
            server.kill()
            server.wait()
    shutil.rmtree(folder)


def serve(address: str) -> None:
    """Answer one request after the other until killed."""
    import diffusers  # noqa: F401
    import matplotlib.pyplot  # noqa: F401
    import pandas  # noqa: F401
    import scipy.fft  # noqa: F401
    import sklearn.metrics  # noqa: F401
    import torch  # noqa: F401

    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(f"{address}.new")
        listener.listen()
        os.rename(f"{address}.new", address)
        while True:
            connection, _ = listener.accept()
            with connection:
                first, ancillary, _, _ = connection.recvmsg(1, socket.CMSG_LEN(3 * array.array("i").itemsize))
                files = array.array("i")
                files.frombytes(ancillary[0][2])
                with connection.makefile("rb") as stream:
                    arguments, folder, environment = json.loads(first + stream.readline())
                process = os.fork()
                if process == 0:
                    listener.close()
                    run(arguments, folder, environment, list(files))
                for file in files:
                    os.close(file)
                _, status = os.waitpid(process, 0)
                connection.sendall(str(os.waitstatus_to_exitcode(status)).encode())


def run(arguments: list[str], folder: str, environment: dict[str, str], files: list[int]) -> None:
    """In a copy of the process: run a script as Python itself would; never returns."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    for number, file in enumerate(files):
        os.dup2(file, number)
    # New ones, as the old know whether the files that they were opened on can be seeked.
    sys.stdout = open(1, "w", encoding="utf-8", closefd=False)  # noqa: SIM115
    sys.stderr = open(2, "w", encoding="utf-8", errors="backslashreplace", buffering=1, closefd=False)  # noqa: SIM115
    sys.argv = arguments
    library = [path for path in environment.get("PYTHONPATH", "").split(os.pathsep) if path]
    sys.path[:1] = [str(Path(arguments[0]).resolve().parent), *library]
    status = 0
    try:
        runpy.run_path(arguments[0], run_name="__main__")
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else 0 if end.code is None else 1
        if isinstance(end.code, str):
            print(end.code, file=sys.stderr)
    except BaseException:
        sys.excepthook(*sys.exc_info())  # type: ignore[arg-type]
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


if __name__ == "__main__":
    serve(sys.argv[1])
