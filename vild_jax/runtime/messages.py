"""Shortens the messages of errors."""

from __future__ import annotations


def first_line(error: BaseException) -> str:
  """Returns the first line of the message of an error, or its type if there is none."""
  return (str(error).strip() or type(error).__name__).splitlines()[0]
