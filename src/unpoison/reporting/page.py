"""The page: one self-contained HTML file, and the same tables as Markdown."""

from __future__ import annotations

import base64
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

from . import escaping

STYLE = """
:root { --ink: #1d2430; --soft: #5d6778; --line: #dfe3ea; --back: #fff; --band: #f5f7fa; }
@media (prefers-color-scheme: dark) { :root { --ink: #e6e9ef; --soft: #a2abba; --line: #343b47; --back: #171b21;
  --band: #1f252d; } img.figure { background: #fff; border-radius: 6px; } }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 1080px; padding: 1.2rem; background: var(--back); color: var(--ink);
  font: 16px/1.55 system-ui, sans-serif; }
h1 { font-size: 1.6rem; margin: .4rem 0; } h2 { font-size: 1.2rem; margin: 2.2rem 0 .6rem; }
p { max-width: 46rem; } .soft { color: var(--soft); }
td, p, figcaption { overflow-wrap: anywhere; }
.scroll { overflow-x: auto; } table { border-collapse: collapse; font-variant-numeric: tabular-nums; margin: .5rem 0;
  font-size: .9rem; }
th, td { padding: .3rem .6rem; text-align: right; border-bottom: 1px solid var(--line); vertical-align: top; }
th:first-child, td:first-child { text-align: left; position: sticky; left: 0; background: var(--back); }
td.number { overflow-wrap: normal; } .text { text-align: left; } td.text { min-width: 14rem; }
thead th, thead th:first-child { background: var(--band); font-weight: 600; vertical-align: bottom; }
.row { display: flex; flex-wrap: wrap; gap: 1rem; } .row figure { flex: 1 1 300px; max-width: 400px; }
figure { margin: 0; } figcaption { color: var(--soft); font-size: .88rem; } img.figure { width: 100%; height: auto; }
.wide { min-width: 640px; }
.grid { display: grid; grid-template-columns: repeat(auto-fill, minmax(145px, 1fr)); gap: .6rem; }
.grid img { display: block; width: 100%; height: auto; } .grid figcaption { font-size: .75rem; line-height: 1.25; }
.suspects { display: flex; flex-wrap: wrap; gap: .3rem; } .suspects img { width: 38px; height: 38px; }
.suspects img, img.pixels { image-rendering: pixelated; } img.hit { outline: 2px solid #c8442f; }
code { background: var(--band); padding: .1em .3em; border-radius: 3px; }
"""


@dataclass(frozen=True)
class Table:
    """A table of text.

    Attributes:
        header: titles of the columns.
        rows: cells; the first one names the row.
        text_columns: numbers of the columns with sentences instead of figures, aligned to the left.
    """

    header: Sequence[str]
    rows: Sequence[Sequence[str]]
    text_columns: frozenset[int] = frozenset()

    def html(self) -> str:
        # Every cell is escaped: names of classes and files come from data of unknown origin.
        kinds = ["text" if i in self.text_columns else "number" for i in range(len(self.header))]
        head = "".join(
            f'<th class="{kind}">{escaping.html(cell)}</th>' for kind, cell in zip(kinds, self.header, strict=True)
        )
        body = "".join(
            "<tr>"
            + "".join(f'<td class="{kind}">{escaping.html(cell)}</td>' for kind, cell in zip(kinds, row, strict=True))
            + "</tr>"
            for row in self.rows
        )
        return f'<div class="scroll"><table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table></div>'

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
    _html: list[str] = field(default_factory=list)
    _markdown: list[str] = field(default_factory=list)

    def heading(self, text: str, *, both: bool = True) -> None:
        self._html.append(f"<h2>{escaping.html(text)}</h2>")
        if both:
            self._markdown.append(f"## {escaping.markdown(text)}")

    def text(self, text: str, *, both: bool = True) -> None:
        self._html.append(f"<p>{escaping.html(text)}</p>")
        if both:
            self._markdown.append(escaping.paragraph(text))

    def table(self, table: Table, *, both: bool = True) -> None:
        self._html.append(table.html())
        if both:
            self._markdown.append(table.markdown())

    def figures(self, pictures: Sequence[tuple[bytes, str]], *, wide: bool = False) -> None:
        """Add figures of (PNG, caption) side by side; a wide one scrolls on a narrow screen instead of shrinking."""
        kind, box = ("figure wide", "scroll") if wide else ("figure", "row")
        self._html.append(f'<div class="{box}">{_captioned(pictures, kind)}</div>')

    def grid(self, pictures: Sequence[tuple[bytes, str]], *, pixels: bool = False) -> None:
        """Add small figures of (PNG, caption), as many in a row as the screen has room for: two on a telephone.

        Args:
            pictures: figures, of one size.
            pixels: whether they are images, whose pixels are to be seen.
        """
        kind = "pixels" if pixels else "figure"
        self._html.append(f'<div class="grid">{_captioned(pictures, kind)}</div>')

    def thumbnails(self, pictures: Sequence[tuple[bytes, str, bool]]) -> None:
        """Add tiny images of (PNG, name, whether to mark it); the name is shown to whoever points at one."""
        parts = [
            f'<img class="{"hit" if marked else ""}" alt="{escaping.html(name)}" title="{escaping.html(name)}" '
            f'src="{_inline(png)}">'
            for png, name, marked in pictures
        ]
        self._html.append(f'<div class="suspects">{"".join(parts)}</div>')

    def html(self) -> str:
        """The page as one HTML file."""
        title = escaping.html(self.title)
        return (
            f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{title}</title>'
            '<meta name="viewport" content="width=device-width, initial-scale=1">'
            f"<style>{STYLE}</style></head><body>\n<h1>{title}</h1>\n" + "\n".join(self._html) + "\n</body></html>\n"
        )

    def markdown(self) -> str:
        """The summary."""
        return f"# {escaping.markdown(self.title)}\n\n" + "\n\n".join(self._markdown) + "\n"


def _captioned(pictures: Sequence[tuple[bytes, str]], kind: str) -> str:
    return "".join(
        f'<figure><img class="{kind}" alt="{escaping.html(caption)}" src="{_inline(png)}">'
        f"<figcaption>{escaping.html(caption)}</figcaption></figure>"
        for png, caption in pictures
    )


def _inline(png: bytes) -> str:
    # Within the page, so that it is one file that can be sent around.
    return "data:image/png;base64," + base64.b64encode(png).decode()
