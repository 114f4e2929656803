"""Small HTML for notebooks. Everything is escaped: names of models and layers are not ours."""

from __future__ import annotations

import html
from collections.abc import Sequence


def table(title: str, header: Sequence[str], rows: Sequence[Sequence[object]], note: str = "") -> str:
    """A table with a title above it and a note below; the first column is aligned left, as text, the others right."""
    head = "".join(_cell("th", name, place) for place, name in enumerate(header))
    body = "".join(f"<tr>{''.join(_cell('td', cell, place) for place, cell in enumerate(row))}</tr>" for row in rows)
    top = f"<thead><tr>{head}</tr></thead>" if header else ""
    end = f"<p>{html.escape(note)}</p>" if note else ""
    return f"<div><p><b>{html.escape(title)}</b></p><table>{top}<tbody>{body}</tbody></table>{end}</div>"


STYLE = """body { font: 16px/1.5 system-ui, sans-serif; margin: 1rem; } table { border-collapse: collapse; }
th, td { padding: .25rem .6rem; }"""


def document(title: str, body: str, style: str = STYLE) -> str:
    """A page of its own.

    Args:
        title: as text.
        body: as HTML.
    """
    meta = '<meta charset="utf-8"><meta name="viewport" content="width=device-width, initial-scale=1">'
    head = f"{meta}<title>{html.escape(title)}</title><style>{style}</style>"
    return f'<!doctype html><html lang="en"><head>{head}</head><body>{body}</body></html>\n'


def _cell(kind: str, content: object, place: int) -> str:
    return f'<{kind} style="text-align: {"right" if place else "left"}">{html.escape(str(content))}</{kind}>'
