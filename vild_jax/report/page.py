"""Puts sections together to a page: one file with style and pictures inside and no script."""

from __future__ import annotations

from collections.abc import Sequence
from html import escape

from vild_jax.report.style import STYLE


def document(title: str, lead: str, sections: Sequence[str]) -> str:
  """Returns the HTML of a page, for light and dark mode and phones; `sections` are HTML, title and lead are text."""
  return (
    f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8"><title>{escape(title)}</title>'
    '<meta name="viewport" content="width=device-width, initial-scale=1">'
    f'<meta name="color-scheme" content="light dark"><style>{STYLE}</style></head><body><main>'
    f'<header><h1>{escape(title)}</h1><p class="lead">{escape(lead)}</p></header>'
    f'{"".join(sections)}</main></body></html>\n'
  )


def section(heading: str, text: str, *content: str) -> str:
  """Returns a section with a heading and a paragraph (text) above its content (HTML); empty without content."""
  if not any(content):
    return ''
  paragraph = f'<p>{escape(text)}</p>' if text else ''
  return f'<section><h2>{escape(heading)}</h2>{paragraph}{"".join(content)}</section>'


def table(columns: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
  """Returns a table of text; the first cell of a row is its name. Empty without rows."""
  if not rows:
    return ''
  head = ''.join(f'<th>{escape(name)}</th>' for name in columns[1:])
  body = ''.join(
    f'<tr><th scope="row">{escape(row[0])}</th>{"".join(f"<td>{escape(cell)}</td>" for cell in row[1:])}</tr>'
    for row in rows
  )
  return (
    f'<div class="scroll"><table class="plain"><thead><tr><th style="text-align:left">{escape(columns[0])}</th>{head}'
    f'</tr></thead><tbody>{body}</tbody></table></div>'
  )


def facts(entries: Sequence[tuple[str, str]]) -> str:
  """Returns a list of names and values."""
  rows = ''.join(f'<div><dt>{escape(key)}</dt><dd>{escape(value)}</dd></div>' for key, value in entries)
  return f'<dl>{rows}</dl>' if rows else ''


def tiles(entries: Sequence[tuple[str, str, str, str]]) -> str:
  """Returns large numbers: (class for the colour, label, value, note) of each."""
  cards = ''.join(
    f'<div class="tile {kind}"><span>{escape(label)}</span><strong>{escape(value)}</strong>'
    f'<small>{escape(note)}</small></div>'
    for kind, label, value, note in entries
  )
  return f'<div class="tiles">{cards}</div>'


def row(content: str) -> str:
  """Returns content side by side where the page is wide enough; empty without content."""
  style = 'display:flex;flex-wrap:wrap;gap:12px 24px;align-items:flex-start;margin-top:16px'
  return f'<div style="{style}">{content}</div>' if content else ''


def percent(fraction: float | None) -> str:
  """Returns a fraction in per cent, with one digit after the point; a dash for None."""
  return '–' if fraction is None else f'{100 * fraction:.1f}'
