"""Parses XML from outside: without document types, whose entities grow or read files. Elements know their lines."""

from __future__ import annotations

from pathlib import Path
from xml.etree.ElementTree import Element, TreeBuilder
from xml.parsers import expat

from vild_jax.data.schema import DataError

_LINE = ' line'  # no attribute of a document can have this name


def parse(path: Path, root: str, what: str) -> Element:
  """Returns the root element of a file.

  Args:
    path: the file.
    root: the tag that it must have.
    what: what was expected, for messages.

  Raises DataError if the file cannot be read, is not well-formed, has a document type, or has another root.
  """
  builder, parser = TreeBuilder(), expat.ParserCreate()

  def refuse(*_: object) -> None:
    raise DataError(f'{path}, line {parser.CurrentLineNumber}: a document type (DOCTYPE); expected {what} without one')

  parser.buffer_text = True
  parser.StartDoctypeDeclHandler = refuse
  parser.StartElementHandler = lambda tag, attributes: builder.start(
    tag, {**attributes, _LINE: str(parser.CurrentLineNumber)}
  )
  parser.EndElementHandler = builder.end
  parser.CharacterDataHandler = builder.data
  try:
    parser.Parse(path.read_bytes(), True)
    tree = builder.close()
  except OSError as error:
    raise DataError(f'{path} cannot be read ({error.strerror}); expected {what}') from None
  except (expat.ExpatError, ValueError, LookupError) as error:
    if isinstance(error, DataError):
      raise
    raise DataError(f'{path} is not XML ({error}); expected {what}') from None
  if tree.tag != root:
    raise DataError(f'{path} has the root <{tree.tag}>; expected {what}, with <{root}>')
  return tree


def line_of(element: Element) -> int:
  """Returns the line on which an element begins."""
  return int(element.get(_LINE, 0))
