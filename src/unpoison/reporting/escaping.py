"""Foreign text for each kind of reader: a page, a summary, a spreadsheet, a figure, a terminal.

Names of classes, files, data sets and metrics come from whoever made the data, and may hold anything. Each format has one
function, through which all text goes to it, so that a name is shown as it is written and does nothing. What no reader shows,
or a terminal obeys, stands everywhere as Python writes it in a text: `\\n`, `\\x1b`, `\\u202e`.
"""

from __future__ import annotations

import html as html_
import os
import re
import sys
import unicodedata
from functools import cache
from typing import TextIO

# Joiners belong to the spelling of words and emoji, wide spaces to that of Chinese and Japanese.
JOINERS = "\u200c\u200d"
# Emphasis, code, HTML, cells, strike-through and mathematics begin with one of these anywhere; an underscore between
# letters, a bracket without a target behind it and an ampersand that names no character begin nothing.
_MARKDOWN = re.compile(
    r"[\\`*<|~$]|(?<![^\W_])_|_(?![^\W_])|\](?=[(\[:])|&(?=#?\w+;)|(?<=\w):(?=//)|(?<=www)\.", re.IGNORECASE
)
# What makes a block of its own at the start of a line.
_BLOCK = re.compile(r"^(?:[#>=]|[-+](?=[\s+-]|$)|\d+(?=[.)](?:\s|$)))")
# Spreadsheets take such a cell for a formula, and some its wide forms; the quote is the mark for text that is put in front.
_FORMULA = tuple("=+-@'\uff1d\uff0b\uff0d\uff20")


def visible(text: str, *, keep: str = "") -> str:
    """The text with what is not printable in escapes, except spaces and the characters of `keep`."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in keep or _is_space(c) else _escape(c) for c in text)


def _is_space(character: str) -> bool:
    return unicodedata.category(character) == "Zs"


def _escape(character: str) -> str:
    return character.encode("unicode_escape", "surrogatepass").decode()


def html(text: str) -> str:
    """Text of an element, or an attribute in quotes."""
    return html_.escape(visible(text, keep=JOINERS))


def markdown(text: str) -> str:
    """Inline text, also of a table's cell, that renders as it is written."""
    return _MARKDOWN.sub(r"\\\g<0>", visible(text, keep=JOINERS))


def paragraph(text: str) -> str:
    """A paragraph of Markdown, which no character at its start turns into a heading, a list or a rule."""
    return _no_block(markdown(" ".join(text.split())))


def _no_block(line: str) -> str:
    start = _BLOCK.match(line)
    if start is None:
        return line
    # Of `1.` the point is what counts, of all others the character itself.
    place = start.end() if line[0].isdigit() else 0
    return f"{line[:place]}\\{line[place:]}"


def prose(text: str) -> str:
    """Inline Markdown of sentences written for a page: `code` in backticks stays code, all else is literal."""
    # The odd pieces are code. Within it no backslash counts, except that in front of the bar that would end a cell.
    pieces = re.split(r"(`[^`]+`)", " ".join(text.split()))
    return _no_block("".join(code(piece[1:-1]) if n % 2 else markdown(piece) for n, piece in enumerate(pieces)))


def code(text: str) -> str:
    """Code in Markdown; a backtick in it, which would end it, is shown as the quote it looks like."""
    shown = visible(text, keep=JOINERS).replace("`", "'")
    return "`" + shown.replace("|", "\\|") + "`"


def spreadsheet(text: str) -> str:
    """A cell of CSV that no spreadsheet takes for a formula: `'` in front of text that begins as one, or with `'`.

    To get the text back, take one `'` from the front of a cell that begins with it. Numbers stay as they are.
    """
    shown = visible(text, keep=JOINERS)
    return f"'{shown}" if shown.lstrip().startswith(_FORMULA) and not _is_number(shown) else shown


def from_spreadsheet(cell: str) -> str:
    """The text that `spreadsheet` made a cell of."""
    return cell.removeprefix("'")


def _is_number(text: str) -> bool:
    return re.fullmatch(r"[-+]?\d+(\.\d*)?(e[-+]?\d+)?", text, re.IGNORECASE | re.ASCII) is not None


def figure(text: str, longest: int = 40) -> str:
    """A label in a figure: without mathematics, with what the font lacks in escapes, and its middle left out past `longest`."""
    # Cut first: a name may be long enough to fill the memory with its picture.
    if len(text) > longest:
        text = f"{text[: longest // 2]}…{text[-(longest - longest // 2 - 1) :]}"
    # An unescaped pair of dollars would start mathematics.
    return "".join(c if _has_glyph(c) else _escape(c) for c in visible(text)).replace("$", "\\$")


@cache
def _has_glyph(character: str) -> bool:
    from matplotlib.font_manager import findfont, get_font

    return bool(get_font(findfont("DejaVu Sans")).get_char_index(ord(character)))


def terminal(text: str) -> str:
    """Lines for a terminal: it obeys nothing in them."""
    return "\n".join(visible(line) for line in text.split("\n"))


def say(text: str, *, end: str = "\n", file: TextIO | None = None) -> None:
    """Print lines of foreign text, on a terminal of any encoding: what it cannot show stands in escapes."""
    stream = sys.stdout if file is None else file
    encoding = getattr(stream, "encoding", None) or "utf-8"
    try:
        print(terminal(text).encode(encoding, "backslashreplace").decode(encoding), end=end, file=stream, flush=True)
    except BrokenPipeError:
        # Whoever reads has enough (`… | head`). Python's last flush would fail in the same way.
        os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())
        sys.exit(1)
