"""Plain tables as text and as HTML: escaped, without scripts, readable without style, in the colours of the theme.

What is shown passes here, so what looks secret is masked here, and control characters are left out.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from html import escape

from mlopsnb.masking import masked

Row = Sequence[object]

_FONT = "font-family:var(--jp-ui-font-family,system-ui,sans-serif);font-size:var(--jp-ui-font-size1,13px)"
_MONO = (
    "font-family:var(--jp-code-font-family,ui-monospace,monospace);font-size:var(--jp-code-font-size,12px)"
)
_CODE = f"{_MONO};color:inherit;background:transparent;padding:0;white-space:pre-wrap;overflow-wrap:anywhere"
_QUIET = "color:var(--jp-ui-font-color2,inherit)"
_BORDER = "1px solid var(--jp-border-color2,#bdbdbd)"
_CARD = f"{_FONT};line-height:1.4;color:var(--jp-ui-font-color1,inherit);margin:4px 0;max-width:60em"
_TABLE = "border-collapse:collapse;margin:2px 0 6px 0;font-size:inherit;table-layout:auto"
_CELL = "text-align:left;vertical-align:top;padding:3px 14px 3px 0;background:transparent"
_BAR = 12
"""Characters of a bar that stands for the whole."""
_BAR_STYLE = "letter-spacing:-1px;opacity:0.6;white-space:nowrap"
_LINE = f"border-top:{_BORDER}"


@dataclass(frozen=True, slots=True)
class Code:
    """A cell in the code font, in one piece for copying."""

    text: str

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Link:
    """A path on the Jupyter server; in HTML a link to it, in a page of its own."""

    path: str

    def __str__(self) -> str:
        return self.path


@dataclass(frozen=True, slots=True)
class Badge:
    """A state as a symbol and a word; in HTML a colour repeats what they say."""

    symbol: str
    word: str

    def __str__(self) -> str:
        return f"{self.symbol} {self.word}"


@dataclass(frozen=True, slots=True)
class Bar:
    """A share of a whole, from 0 to 1: a bar for the eye and a number for everybody."""

    share: float

    def __str__(self) -> str:
        return f"{'█' * round(self.share * _BAR):<{_BAR}} {self.share:4.0%}"


@dataclass(frozen=True, slots=True)
class Plot:
    """A number as text, and in HTML over a small picture; `picture` is HTML of ours."""

    text: str
    picture: str = ""

    def __str__(self) -> str:
        return self.text


@dataclass(frozen=True, slots=True)
class Pair:
    """A name, in the code font, and what goes with it; in HTML that is below, quietly."""

    text: str
    below: str

    def __str__(self) -> str:
        return f"{self.text} {self.below}"


def cell(value: object) -> str:
    """Return *value* as HTML, escaped, with its line breaks."""
    text = escape(masked(str(value))).replace("\n", "<br>")
    if isinstance(value, Code | Link):
        link = f'a href="{text}" target="_blank" rel="noopener"'
        tag = f'code style="{_CODE}"' if isinstance(value, Code) else link
        return f"<{tag}>{text}</{tag.partition(' ')[0]}>" if text else ""
    if isinstance(value, Badge):
        colour = {
            "✓": ";color:var(--jp-success-color1,inherit)",
            "✗": ";color:var(--jp-error-color1,inherit)",
        }
        return f'<span style="white-space:nowrap{colour.get(value.symbol, "")}">{text}</span>'
    if isinstance(value, Bar):
        bar = "█" * round(value.share * _BAR)
        return f'{value.share:.0%} <span aria-hidden="true" style="{_BAR_STYLE}">{bar}</span>'
    if isinstance(value, Pair):
        # Short names stay whole, long ones break.
        style = f"{_MONO};display:inline-block;min-width:{min(len(value.text), 24)}ch;overflow-wrap:anywhere"
        name = f'<span style="{style}">{escape(value.text)}</span>'
        below = escape(unbroken(value.below))
        return f'{name}<br><span style="{_QUIET};white-space:nowrap">{below}</span>'
    if isinstance(value, Plot):
        return f'<span style="white-space:nowrap">{text}</span><br>{value.picture}' if text else ""
    # Some pages let text break anywhere, blanks that must not break included.
    return f'<span style="white-space:nowrap">{text}</span>' if "\u00a0" in text else text


def card(title: object, *parts: str, role: str = "", wide: bool = False) -> str:
    """Return a titled block of HTML *parts*. *role* is its ARIA role; without, it is a group that has the title's name.

    It is as wide as text is read well, or *wide*: as its content, which scrolls where there is no room.
    """
    attributes = f' role="{role}"' if role else f' role="group" aria-label="{escape(masked(str(title)))}"'
    head = f'<div style="padding:2px 0 3px 0"><strong>{cell(title)}</strong></div>'
    style = _CARD.replace("max-width:60em", "overflow-x:auto") if wide else _CARD
    return f'<div{attributes} style="{style}">{head}{"".join(parts)}</div>'


def folded(summary: str, content: str) -> str:
    """Return *content*, which is HTML, under a line that opens and closes it."""
    return f'<details><summary style="cursor:pointer">{escape(summary)}</summary>{content}</details>'


def preformatted(text: str, *, label: str) -> str:
    """Return *text* in the code font as it is, in a box that scrolls and can be reached by keyboard."""
    style = f"{_MONO};white-space:pre-wrap;overflow-wrap:anywhere;max-height:32em;overflow:auto;margin:0"
    return (
        f'<pre role="region" aria-label="{escape(label)}" tabindex="0" style="{style}">'
        f"{escape(masked(text))}</pre>"
    )


def unbroken(text: str) -> str:
    """Return *text* with blanks at which no line is broken."""
    return text.replace(" ", "\u00a0")


def html_table(rows: Iterable[Row], header: Sequence[str] = (), *, label: str = "") -> str:
    """Return a table. Without *header* the first cell of each row names the row. *label* tells what it holds."""
    named = f' aria-label="{escape(label)}"' if label else ""
    head = ""
    if header:
        cells = "".join(
            f'<th scope="col" style="{_CELL};{_QUIET};font-weight:normal">{escape(h)}</th>' for h in header
        )
        head = f'<thead><tr style="background:transparent">{cells}</tr></thead>'
    body = "".join(_html_row(row, named_rows=not header) for row in rows)
    return f'<table{named} style="{_TABLE}">{head}<tbody>{body}</tbody></table>'


def _html_row(row: Row, *, named_rows: bool) -> str:
    cells = []
    for i, value in enumerate(row):
        if named_rows and i == 0:
            cells.append(
                f'<th scope="row" style="{_CELL};{_QUIET};font-weight:normal;white-space:nowrap">{cell(value)}</th>'
            )
        else:
            cells.append(f'<td style="{_CELL}">{cell(value)}</td>')
    return f'<tr style="{_LINE};background:transparent">{"".join(cells)}</tr>'


def text_table(rows: Iterable[Row], header: Sequence[str] = ()) -> str:
    """Return the same table as aligned text."""
    lines = [[masked(str(v)) for v in row] for row in ([header, *rows] if header else rows)]
    if not lines:
        return ""
    widths = [max(len(line[i]) for line in lines) for i in range(len(lines[0]))]
    return "\n".join(
        "  ".join(v.ljust(w) for v, w in zip(line, widths, strict=True)).rstrip() for line in lines
    )
