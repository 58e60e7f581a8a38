"""Pages of the library's modules from their docstrings, with a search: `make api`. Whatever pdoc warns of ends it."""

from __future__ import annotations

import argparse
import importlib
import importlib.util
import pkgutil
import shutil
import sys
import warnings
from dataclasses import is_dataclass
from pathlib import Path
from types import FunctionType, GenericAlias
from typing import get_type_hints


def resolve_fields(kind: type) -> None:
    """Put the types of a dataclass's or a named tuple's fields, inherited ones as well, into its generated constructor.

    They stand there as texts, which pdoc would look up in the module of the class alone, and not in that of the field.
    """
    if not (is_dataclass(kind) or issubclass(kind, tuple)):
        return
    hints = get_type_hints(kind, include_extras=True)
    for name in ("__init__", "__new__"):
        maker = vars(kind).get(name)
        maker = maker.__func__ if isinstance(maker, staticmethod) else maker
        if isinstance(maker, FunctionType):
            maker.__annotations__ |= {key: hints[key] for key in maker.__annotations__ if key in hints}


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("out", type=Path, help="folder that is made or replaced")
    out = parser.parse_args().out
    if importlib.util.find_spec("pdoc") is None:
        print("error: pdoc: not found, allowed: an environment with it, by `pip install -e '.[docs]'`", file=sys.stderr)
        return 1
    import pandas as pd
    import pdoc

    import unpoison

    names = list[str]()
    # The libraries' own warnings on being imported are none of the pages'.
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for module in pkgutil.walk_packages(unpoison.__path__, "unpoison."):
            if not module.name.endswith("__main__"):
                names.append(module.name)
                loaded = importlib.import_module(module.name)
                # pdoc leaves out the modules of a package that says what it exports.
                if module.ispkg:
                    vars(loaded).pop("__all__", None)
                for kind in vars(loaded).values():
                    if isinstance(kind, type) and kind.__module__ == module.name:
                        resolve_fields(kind)
    # For type checkers alone it has an argument.
    pd.Series.__class_getitem__ = classmethod(GenericAlias)
    shutil.rmtree(out, ignore_errors=True)
    pdoc.render.configure(docformat="google", footer_text=f"unpoison {unpoison.__version__}")
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        pdoc.pdoc("unpoison", output_directory=out)
    said = {f"{name}: no page" for name in names if not (out / f"{name.replace('.', '/')}.html").is_file()}
    said |= {str(warning.message).splitlines()[0] for warning in caught}
    for line in sorted(said):
        print(f"error: {line}", file=sys.stderr)
    if said:
        return 1
    print(f"wrote {len([*out.rglob('*.html')])} pages: {out / 'index.html'}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
