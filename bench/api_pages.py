"""Pages of the library's modules from their docstrings, with a search: `make api`. Whatever pdoc warns of ends it."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import pkgutil
import shutil
import sys
import warnings
from pathlib import Path

FOOTER = "unpoison"


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path, help="folder that is made or replaced")
    out = parser.parse_args().out
    if importlib.util.find_spec("pdoc") is None:
        print("error: pdoc: not found, allowed: an environment with it, by `pip install -e '.[docs]'`", file=sys.stderr)
        return 1
    import pdoc

    import unpoison

    # The libraries' own warnings on being imported are none of the pages'.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for module in pkgutil.walk_packages(unpoison.__path__, "unpoison."):
            if not module.name.endswith("__main__"):
                importlib.import_module(module.name)
    shutil.rmtree(out, ignore_errors=True)
    pdoc.render.configure(docformat="google", footer_text=f"{FOOTER} {unpoison.__version__}")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        pdoc.pdoc("unpoison", output_directory=out)
    print(f"wrote {len([*out.rglob('*.html')])} pages: {out / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
