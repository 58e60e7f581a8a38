"""The page: one self-contained HTML file, and the same tables as Markdown."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from . import escaping

STYLE = """
:root { color-scheme: light dark; --ink: #1d2430; --soft: #5d6778; --line: #dfe3ea; --back: #fff; --band: #f5f7fa;
  --focus: #1f5fbf; --hit: #c8442f; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --soft: #a2abba; --line: #343b47; --back: #171b21;
  --band: #1f252d; --focus: #8ab4f8; --hit: #f0705a; } img.figure { background: #fff; border-radius: 6px; } }
* { box-sizing: border-box; }
body { margin: 0; background: var(--back); color: var(--ink); font: 16px/1.55 system-ui, sans-serif; }
main { margin: 0 auto; max-width: 1120px; padding: 1.2rem; }
h1 { font-size: 1.6rem; margin: .4rem 0; } h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; }
p { max-width: 46rem; }
h1, h2, p, th, td, figcaption { overflow-wrap: anywhere; }
.scroll { overflow-x: auto; } :focus-visible { outline: 3px solid var(--focus); outline-offset: 2px; }
table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .5rem 0; font-size: .9rem; }
th, td { padding: .3rem .6rem; text-align: right; border-bottom: 1px solid var(--line); vertical-align: top; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: var(--back); min-width: 8.5rem; }
tbody th { font-weight: normal; } th.number { overflow-wrap: break-word; max-width: 12rem; }
td.number { overflow-wrap: normal; }
.text { text-align: left; } td.text:not(:first-child) { min-width: 12rem; }
td span { display: block; white-space: nowrap; color: var(--soft); font-size: .85rem; }
thead th, thead td, thead :first-child { background: var(--band); font-weight: 600; vertical-align: bottom; }
.row { display: flex; flex-wrap: wrap; gap: 1rem; } .row figure { flex: 1 1 300px; max-width: 400px; }
figure { margin: 0; min-width: 0; } figcaption { color: var(--soft); font-size: .88rem; }
img.figure { display: block; width: 100%; height: auto; } .scroll img.figure { width: auto; max-width: none; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(145px, 1fr)); gap: .8rem; margin: .5rem 0; }
.grid figcaption, .suspects figcaption { font-size: .8rem; line-height: 1.35; margin-top: .2rem; }
.grid img.pixels { display: block; width: 100%; height: auto; }
.suspects { display: grid; grid-template-columns: repeat(auto-fill, minmax(110px, 1fr)); gap: .6rem; margin: .5rem 0; }
.suspects img { display: block; width: 80px; height: 80px; object-fit: contain; object-position: left; }
.suspects span { display: block; color: var(--ink); }
.suspects img, img.pixels { image-rendering: pixelated; } img.hit { outline: 3px solid var(--hit); }
@media print { main { max-width: none; padding: 0; } body { font-size: 11pt; } .scroll { overflow: visible; }
  table { font-size: 9pt; } th:first-child, td:first-child { position: static; } td.text:not(:first-child) { min-width: 0; }
  .scroll img.figure { max-width: 100%; } h2 { break-after: avoid; } tr, figure { break-inside: avoid; }
  thead { display: table-header-group; } }
"""


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        header: titles of the columns.
        rows: cells; the first one names the row, and is its header.
        text_columns: numbers of the columns with sentences instead of figures, aligned to the left.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    text_columns: frozenset[int] = frozenset()

    def html(self, label: str = "Table") -> str:
        """The table in a box of its own, which scrolls where it is wider than the page, by keys as well.

        Args:
            label: what the table is of, for readers who do not see it.
        """
        head = "".join(self._cell(n, cell, "col" if cell else "") for n, cell in enumerate(self.header))
        body = "".join(
            "<tr>" + "".join(self._cell(n, cell, "" if n else "row") for n, cell in enumerate(row)) + "</tr>"
            for row in self.rows
        )
        return _scrolling(label, f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>")

    def _cell(self, column: int, text: str, heads: str) -> str:
        """A cell; `heads`: what it is the header of, `col`, `row` or "" for nothing."""
        kind = "number" if column and column not in self.text_columns else "text"
        tag, scope = ("th", f' scope="{heads}"') if heads else ("td", "")
        # Every cell is escaped: names of classes and files come from data of unknown origin.
        shown = escaping.html(text)
        if kind == "number" and tag == "td":
            # The interval of a figure has a line of its own: a column of them is narrow, and reads alike in every row.
            figure, bracket, interval = shown.partition(" [")
            shown = f"{figure} <span>[{interval}</span>" if bracket else figure
        return f'<{tag}{scope} class="{kind}">{shown}</{tag}>'

    def markdown(self, written: Callable[[str], str] = escaping.markdown) -> str:
        """The table as Markdown; `written` makes a cell of text, other than literally where it is `prose`."""
        align = "|".join("---" if i == 0 or i in self.text_columns else "---:" for i in range(len(self.header)))
        lines = ["| " + " | ".join(map(written, row)) + " |" for row in (self.header, *self.rows)]
        return "\n".join([lines[0], f"|{align}|", *lines[1:]])


@dataclass
class Page:
    """A page under construction, with a summary in Markdown of those of its parts that are marked `both`.

    Attributes:
        title: title of page and summary.
    """

    title: str
    _section: str = ""
    _html: list[str] = field(default_factory=list)
    _markdown: list[str] = field(default_factory=list)

    def heading(self, text: str, *, both: bool = True) -> None:
        self._section = text
        self._html.append(f"<h2>{escaping.html(text)}</h2>")
        if both:
            self._markdown.append(f"## {escaping.markdown(text)}")

    def text(self, text: str, *, both: bool = True) -> None:
        self._html.append(f"<p>{escaping.html(text)}</p>")
        if both:
            self._markdown.append(escaping.paragraph(text))

    def table(self, table: Table, *, both: bool = True) -> None:
        first = table.header[0] or table.header[-1]
        self._html.append(table.html(f"{self._section or self.title}: table, {first}"))
        if both:
            self._markdown.append(table.markdown())

    def figures(self, pictures: Sequence[tuple[bytes, str]], *, wide: bool = False) -> None:
        """Add figures of (PNG, caption) side by side; wide ones scroll on a narrow screen instead of shrinking."""
        shown = self._captioned(pictures, "figure")
        self._html.append(
            _scrolling(pictures[0][1] or self._section or self.title, shown)
            if wide
            else f'<div class="row">{shown}</div>'
        )

    def grid(self, pictures: Sequence[tuple[bytes, str]], *, pixels: bool = False) -> None:
        """Add small figures of (PNG, caption), as many in a row as the screen has room for: two on a telephone.

        Args:
            pictures: figures, of one size.
            pixels: whether they are images, whose pixels are to be seen.
        """
        kind = "pixels" if pixels else "figure"
        self._html.append(f'<div class="grid">{self._captioned(pictures, kind)}</div>')

    def gallery(self, pictures: Sequence[tuple[bytes, str, str, bool]]) -> None:
        """Add tiny images of (PNG, name, what is said of it, whether to mark it), each above its name, in full, and the rest."""
        parts = [
            f'<figure><img class="{"hit" if marked else ""}" alt="{escaping.html(f"{name} {said}")}" src="{_inline(png)}">'
            f"<figcaption><span>{escaping.html(name)}</span>{escaping.html(said)}</figcaption></figure>"
            for png, name, said, marked in pictures
        ]
        self._html.append(f'<div class="suspects">{"".join(parts)}</div>')

    def _captioned(self, pictures: Sequence[tuple[bytes, str]], kind: str) -> str:
        """Figures with their captions; one without a caption is called as its section is, for readers who do not see it."""
        return "".join(
            f'<figure><img class="{kind}" alt="{escaping.html(caption or self._section or self.title)}" src="{_inline(png)}">'
            + (f"<figcaption>{escaping.html(caption)}</figcaption></figure>" if caption else "</figure>")
            for png, caption in pictures
        )

    def html(self) -> str:
        """The page as one HTML file."""
        title = escaping.html(self.title)
        return (
            f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<style>{STYLE}</style></head><body><main>\n<h1>{title}</h1>\n"
            + "\n".join(self._html)
            + "\n</main></body></html>\n"
        )

    def markdown(self) -> str:
        """The summary."""
        return f"# {escaping.markdown(self.title)}\n\n" + "\n\n".join(self._markdown) + "\n"


def _scrolling(label: str, content: str) -> str:
    """A box that scrolls by itself. What has no focus cannot be scrolled by keys, and what has needs a name."""
    return f'<div class="scroll" role="region" tabindex="0" aria-label="{escaping.html(label)}">{content}</div>'


def _inline(png: bytes) -> str:
    # Within the page, so that it is one file that can be sent around.
    return "data:image/png;base64," + base64.b64encode(png).decode()
