"""The pages: links and anchors that lead somewhere, files that they name, examples that run, and what a release says of itself."""

from __future__ import annotations

import re
import subprocess
from functools import cache
from pathlib import Path
from typing import Any
from urllib.parse import unquote

import numpy as np
import pytest
import torch
import yaml

import unpoison
from planted import Planted
from unpoison import models
from unpoison.core.yaml_file import parse_yaml

ROOT = Path(__file__).resolve().parent.parent
# A fence that is not closed hides the rest of a page from a reader, and here too.
_FENCE = re.compile(r"^(```|~~~).*?^\1[ \t]*$", re.MULTILINE | re.DOTALL)
_SPAN = re.compile(r"(`+)(?!`).+?(?<!`)\1(?!`)", re.DOTALL)
_LINK = re.compile(r"\]\(\s*<?([^)\s>]*)>?(?:\s+\"[^\"]*\")?\s*\)")
_DEFINED = re.compile(r"^\[[^\]]+\]:\s*(\S+)", re.MULTILINE)
_HEADING = re.compile(r"^#{1,6}[ \t]+(.+?)[ \t]*#*$", re.MULTILINE)
_NAMED = re.compile(
    r"(?<![\w/.-])(?:docs|stages|bench|suites|params|tests|src/unpoison)/[\w./-]*\w\.(?:md|py|yaml|png|csv)\b"
)


@cache
def tracked() -> frozenset[str]:
    """Files of the project by path, with those that are yet to be committed."""
    command = ["git", "ls-files", "--cached", "--others", "--exclude-standard"]
    listed = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.splitlines()
    return frozenset(path for path in listed if (ROOT / path).exists())


PAGES = sorted(path for path in tracked() if path.endswith(".md"))


def prose(text: str) -> str:
    """A page without code, in which brackets are no links: what is blocked out or indented, and spans of it."""
    text = _FENCE.sub("", text)
    kept, before, in_code = list[str](), "", False
    for line in text.splitlines():
        # Indented code begins after an empty line, or goes on; the indented lines of a list item do not.
        in_code = line.startswith("    ") and (in_code or not before.strip()) and "](" not in line
        kept.append("" if in_code else line)
        before = line
    return _SPAN.sub("", "\n".join(kept))


def links_of(text: str) -> list[str]:
    """Targets of a page's links and pictures, those elsewhere left out."""
    found = [*_LINK.findall(prose(text)), *_DEFINED.findall(prose(text))]
    return [target for target in found if not re.match(r"[a-z][a-z+.-]*:", target)]


def anchors_of(text: str) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them: a repeated one is numbered."""
    seen: dict[str, int] = {}
    anchors = set()
    for heading in _HEADING.findall(_FENCE.sub("", text)):
        # A link in a heading counts by its text.
        shown = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading).lower()
        name = re.sub(r"[^\w\- ]", "", shown).replace(" ", "-")
        anchors.add(name if (times := seen.get(name, 0)) == 0 else f"{name}-{times}")
        seen[name] = times + 1
    return anchors


def broken(page: str, text: str, root: Path, files: frozenset[str]) -> list[str]:
    """The links of a page of the folder `root` that lead to none of its files, or to no heading in one."""
    found = []
    for target in links_of(text):
        path, _, anchor = unquote(target).partition("#")
        place = (root / page).parent / path if path else root / page
        resolved = Path(place).resolve()
        inside = resolved.is_relative_to(root)
        name = resolved.relative_to(root).as_posix() if inside else ""
        # A folder is where its files are.
        inside = inside and (name in files or name == "." or any(file.startswith(f"{name}/") for file in files))
        headings = anchors_of(resolved.read_text(encoding="utf-8")) if inside and resolved.suffix == ".md" else set()
        if not inside or (anchor and anchor not in headings):
            found.append(target)
    return found


class TestLinks:
    @pytest.mark.parametrize("page", PAGES)
    def test_every_link_leads_somewhere(self, page: str) -> None:
        assert broken(page, (ROOT / page).read_text(encoding="utf-8"), ROOT, tracked()) == []

    def test_every_page_is_looked_at(self) -> None:
        assert {"README.md", "CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "docs/library.md"} < set(PAGES)
        assert any(page.startswith("reports/suites/") for page in PAGES)
        assert sum(len(links_of((ROOT / page).read_text(encoding="utf-8"))) for page in PAGES) > 100

    def test_every_page_of_the_docs_can_be_reached(self) -> None:
        reached, waiting = set[str](), ["README.md"]
        while waiting:
            page = waiting.pop()
            if page in reached or not page.endswith(".md"):
                continue
            reached.add(page)
            for target in links_of((ROOT / page).read_text(encoding="utf-8")):
                waiting.append(((ROOT / page).parent / target.partition("#")[0]).resolve().relative_to(ROOT).as_posix())
        assert {page for page in PAGES if page.startswith("docs/")} <= reached

    @pytest.mark.parametrize(
        "page", [*PAGES, "params.yaml", "Makefile", "Dockerfile", "docker/entry", "pyproject.toml"]
    )
    def test_every_file_that_is_named_is_there(self, page: str) -> None:
        # Names in capitals stand for any (`suites/NAME.yaml`).
        named = {name for name in _NAMED.findall((ROOT / page).read_text(encoding="utf-8")) if name == name.lower()}
        assert named - tracked() == set()

    def test_broken_ones_are_noticed(self, tmp_path: Path) -> None:
        (tmp_path / "a.md").write_text("# One `two`, [three](b.md)!\n\n# One two three\n\n```\n# no heading\n```\n")
        (tmp_path / "b.txt").write_text("")
        text = (
            "[a](a.md) [a](a.md#one-two-three) [a](a.md#one-two-three-1) [b]( b.txt ) [d](.) [w](https://a.example/x)\n"
            "[x](a.md#no-heading) ![y](c.png) [z](../secret) [s](#here) `[q](q.md)` [t](b.txt#one)\n\n"
            "    [code](none.md\n\n[r]: gone.md\n\n```sh\n[f](f.md)\n```\n"
        )
        files = frozenset({"a.md", "b.txt", "page.md"})
        (tmp_path / "page.md").write_text(text)
        assert broken("page.md", text, tmp_path.resolve(), files) == [
            "a.md#no-heading",
            "c.png",
            "../secret",
            "#here",
            "b.txt#one",
            "gone.md",
        ]


def python_blocks(page: str) -> list[str]:
    """The blocks of a page that a reader would give to Python: marked as such, or with an import from the library."""
    text = (ROOT / page).read_text(encoding="utf-8")
    fenced = [found[0] for found in _FENCE.finditer(text)]
    blocks = [block for block in fenced if block.startswith("```python")]
    indented = re.findall(r"(?:^ {4}.*\n)+", _FENCE.sub("", text), re.MULTILINE)
    return blocks + [block for block in indented if re.search(r"^ {4}(?:from|import) ", block, re.MULTILINE)]


class TestExamples:
    def test_every_page_with_examples_is_run(self) -> None:
        # README.md below and docs/library.md in test_library.py.
        assert {page for page in PAGES if python_blocks(page)} == {"README.md", "docs/library.md"}

    def test_the_readmes(self, planted: Planted, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        (block,) = python_blocks("README.md")
        models.save(planted.model, tmp_path / "models" / "backdoored", classes=planted.data.classes, made_by={})
        monkeypatch.chdir(tmp_path)
        names: dict[str, Any] = {
            "images": planted.reserve.gather(np.arange(20)),
            "labels": planted.reserve.labels[:20],
            "classes": planted.reserve.classes,
        }
        exec("\n".join(line.removeprefix("    ") for line in block.splitlines()), names)
        assert names["clean"](torch.zeros(1, 3, 32, 32)).shape == (1, 10)
        assert not torch.equal(names["clean"].head.weight, planted.model.head.weight)


def project() -> dict[str, Any]:
    import tomllib

    loaded: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    return loaded


class TestRelease:
    def test_the_version_stands_in_one_place(self) -> None:
        about = project()
        assert "version" in about["project"]["dynamic"]
        assert "version" not in about["project"]
        assert about["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "unpoison.__version__"}
        assert re.fullmatch(r"\d+\.\d+\.\d+", unpoison.__version__)

    def test_the_changelog_and_the_citation_are_of_this_version(self) -> None:
        heads = re.findall(r"^## \[(.+?)\] - (.+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
        version, day = heads[0]
        cited = parse_yaml((ROOT / "CITATION.cff").read_bytes(), "CITATION.cff")
        assert version == str(cited["version"]) == unpoison.__version__
        # Before its day there is no date in either file.
        assert day == str(cited.get("date-released", "unreleased"))
        assert day == "unreleased" or re.fullmatch(r"\d{4}-\d{2}-\d{2}", day)
        kinds = set(re.findall(r"^### (.+)$", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE))
        assert kinds <= {"Added", "Changed", "Deprecated", "Removed", "Fixed", "Security"}

    def test_the_citation_has_what_its_format_asks_for(self) -> None:
        # Citation File Format 1.2.0: these four are required, and an entity has a name.
        cited = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
        assert {"cff-version", "message", "title", "authors"} <= set(cited)
        assert cited["cff-version"] == "1.2.0"
        assert all({"name"} <= set(author) or {"family-names"} <= set(author) for author in cited["authors"])
        assert cited["license"] == project()["project"]["license"] == "MIT"
        assert cited["type"] == "software"

    def test_the_package_says_what_it_is(self) -> None:
        about = project()["project"]
        for key in ("description", "readme", "license", "license-files", "authors", "keywords", "classifiers"):
            assert about[key], key
        least = about["requires-python"].removeprefix(">=")
        assert f"Programming Language :: Python :: {least}" in about["classifiers"]
        # A licence is given as an expression, and then no classifier may name one.
        assert not [line for line in about["classifiers"] if line.startswith("License")]

    @pytest.mark.parametrize("form", ["bug", "method", "reproduction"])
    def test_the_forms_of_issues(self, form: str) -> None:
        about = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / f"{form}.yml").read_text(encoding="utf-8"))
        assert {"name", "description", "body"} <= set(about)
        fields = [field for field in about["body"] if field["type"] != "markdown"]
        assert all(field["type"] in {"input", "textarea", "dropdown", "checkboxes"} for field in fields)
        assert len({field["id"] for field in fields}) == len(fields) > 2
        assert all(field["attributes"]["label"] for field in fields)
        assert any(field.get("validations", {}).get("required") for field in fields)
        assert all(field["attributes"]["options"] for field in fields if field["type"] == "dropdown")

    def test_contributing_takes_five_minutes(self) -> None:
        text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
        assert len(text.split()) <= 1200  # at 240 words a minute
        for part in ("An attack", "A detector", "A purifier", "A method of robust training", "A suite"):
            assert f"\n## {part}\n" in text
