"""A client of the Hugging Face hub that gives folders of this machine."""

from __future__ import annotations

import sys
import types
from collections.abc import Mapping
from pathlib import Path

import pytest

from vild_jax.runtime import hub


def install(monkeypatch: pytest.MonkeyPatch, folders: Mapping[str, Path]) -> list[tuple]:
  """Puts it in the place of `huggingface_hub`, with {owner/name: folder}; returns the list of what is asked of it."""
  asked = []

  def snapshot_download(repo_id, *, revision, allow_patterns, ignore_patterns):
    asked.append((repo_id, revision, allow_patterns, ignore_patterns))
    if repo_id not in folders:
      raise OSError(f'no {repo_id} here\nmore')
    return str(folders[repo_id])

  monkeypatch.setitem(sys.modules, 'huggingface_hub', types.SimpleNamespace(snapshot_download=snapshot_download))
  monkeypatch.setattr(hub, 'folder', hub.folder.__wrapped__)  # without what earlier tests have asked for
  return asked
