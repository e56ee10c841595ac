"""Videos: what is written can be read, with its times, and what cannot be read is said in one line."""

from __future__ import annotations

import numpy as np
import pytest

from vild_jax.data.schema import DataError
from vild_jax.inference import video


def _write(path, frames, rate=10.0):
  with video.writing(path, rate) as add:
    for frame in frames:
      add(frame)


def _read(path):
  with video.reading(path) as source:
    return source.rate, source.count, list(source.frames)


@pytest.mark.parametrize('size', [(48, 64), (49, 65)])
def test_frames_come_back_in_their_order_and_colours_with_their_times(tmp_path, size):
  colors = [(250, 0, 0), (0, 250, 0), (0, 0, 250), (120, 120, 120)]
  _write(tmp_path / 'a.mp4', [np.full((*size, 3), color, np.uint8) for color in colors])
  rate, count, frames = _read(tmp_path / 'a.mp4')
  assert rate == pytest.approx(10) and count == len(frames) == 4
  assert [seconds for seconds, _ in frames] == pytest.approx([0, 0.1, 0.2, 0.3], abs=1e-3)
  for (_, frame), color in zip(frames, colors, strict=True):
    assert frame.shape == (48, 64, 3) and frame.dtype == np.uint8
    assert np.abs(frame.reshape(-1, 3).mean(0) - color).max() < 12
  assert [path.name for path in tmp_path.iterdir()] == ['a.mp4']


def test_a_name_may_hold_anything(tmp_path):
  _write(tmp_path / 'a %03d ж.mp4', [np.zeros((48, 64, 3), np.uint8)])
  assert _read(tmp_path / 'a %03d ж.mp4')[1] == 1


def test_a_name_that_is_no_text_is_one_line(tmp_path):
  for path in (tmp_path / 'a\udcff.mp4', tmp_path / 'b\udcff' / 'a.mp4'):
    with pytest.raises(DataError, match=r'udcff.*: the path of a video is no UTF-8 text; expected a name that is$'):
      _read(path)
    with pytest.raises(DataError, match='no UTF-8 text'):
      _write(path, [np.zeros((48, 64, 3), np.uint8)])
  assert not list(tmp_path.iterdir())


# Of phones (slow motion), of screens and of very slow cameras.
@pytest.mark.parametrize('rate', [119.8834, 239.8342, 65.5361, 29.97003, 999.87, 0.0004])
def test_any_rate_can_be_written(tmp_path, rate):
  _write(tmp_path / 'a.mp4', [np.zeros((48, 64, 3), np.uint8)] * 3, rate)
  found, count, _ = _read(tmp_path / 'a.mp4')
  assert count == 3 and found == pytest.approx(max(rate, 0.01), rel=1e-3)


@pytest.mark.parametrize('content', [None, b'', b'no video', b'\x00\x00\x00\x18ftypmp42' + bytes(400)])
def test_what_is_no_video_is_one_line(tmp_path, content, capfd):
  if content is not None:
    (tmp_path / 'a.mp4').write_bytes(content)
  with pytest.raises(DataError, match=r'a.mp4: no readable video; expected one that OpenCV decodes'):
    _read(tmp_path / 'a.mp4')
  assert capfd.readouterr().err == ''


def test_a_video_that_fails_leaves_nothing(tmp_path):
  frame = np.zeros((48, 64, 3), np.uint8)
  with pytest.raises(KeyError), video.writing(tmp_path / 'a.mp4', 10) as add:
    add(frame)
    raise KeyError
  with pytest.raises(OSError, match=r'a.mp4 has 1 of 2 frames; expected room on the disk, and one size of all'):
    _write(tmp_path / 'a.mp4', [frame, np.zeros((24, 32, 3), np.uint8)])
  with pytest.raises(DataError, match='cannot write a video of 8200 x 48 pixels; expected at most 8191 a side'):
    _write(tmp_path / 'a.mp4', [np.zeros((48, 8200, 3), np.uint8)])
  assert not list(tmp_path.iterdir())
