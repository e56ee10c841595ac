"""What others have made is read within limits, and whatever its parser raises is one line with the file's name."""

from __future__ import annotations

import io
import json
import struct
import zipfile

import numpy as np
import pytest
import tokenizers

from vild_jax.runtime import reading


def npy(dtype: str, shape: tuple[int, ...], content: bytes = b'') -> bytes:
  """An array file whose header states what it likes."""
  text = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}, }}\n".encode()
  return b'\x93NUMPY\x01\0' + struct.pack('<H', len(text)) + text + content


def npz(path, **members: bytes):
  with zipfile.ZipFile(path, 'w', zipfile.ZIP_DEFLATED) as archive:
    for name, content in members.items():
      archive.writestr(f'{name}.npy', content)
  return path


@pytest.mark.parametrize('raised', [KeyError('x'), RecursionError(), MemoryError(), OSError(5, 'Input/output error')])
def test_whatever_a_parser_raises_is_one_line(raised):
  with pytest.raises(ValueError, match=r'^a/b cannot be read \(.+\); expected a c$'), reading.parsing('a/b', 'a c'):
    raise raised


def test_a_panic_of_a_library_in_rust_is_no_exception_and_is_one_line(capfd):
  pattern = {'type': 'Replace', 'pattern': {'Regex': '(a|aa)+$'}, 'content': ''}
  model = {'type': 'WordLevel', 'vocab': {'x': 0}, 'unk_token': 'x'}
  tree = {'version': '1.0', 'added_tokens': [], 'normalizer': pattern, 'model': model}
  tree |= dict.fromkeys(('truncation', 'padding', 'pre_tokenizer', 'post_processor', 'decoder'))
  panics = tokenizers.Tokenizer.from_str(json.dumps(tree))
  with pytest.raises(ValueError, match=r'^t\.json cannot be read'), reading.parsing('t.json', 'x'):
    try:
      panics.encode('a' * 3000 + 'b')
    except Exception as error:
      raise AssertionError('the library has learnt to raise; expected another way to make it panic') from error
  capfd.readouterr()


@pytest.mark.parametrize('end', [KeyboardInterrupt, SystemExit, GeneratorExit])
def test_what_asks_a_program_to_end_passes(end):
  with pytest.raises(end), reading.parsing('a', 'b'):
    raise end


@pytest.mark.parametrize(
  ('content', 'problem'),
  [
    (b'{', 'is not JSON'),
    (b'\xff\xfe\xfd', 'is not JSON'),
    (b'[' * 100_000 + b']' * 100_000, 'more than 100 deep'),
    (b'[' * 102 + b']' * 102, 'more than 100 deep'),
    (b'9' * 5000, 'is not JSON'),
    (b'[1]', 'holds a list; expected an object'),
  ],
)
def test_json_that_is_none_or_too_deep(tmp_path, content, problem):
  (tmp_path / 'a.json').write_bytes(content)
  with pytest.raises(ValueError, match=problem) as error:
    reading.json_object(tmp_path / 'a.json', 'x')
  assert 'a.json' in str(error.value) and len(str(error.value).splitlines()) == 1


def test_json_of_the_allowed_depth_and_size(tmp_path, monkeypatch):
  (tmp_path / 'a.json').write_text('[' * 100 + ']' * 100)
  reading.json_file(tmp_path / 'a.json', 'x')
  monkeypatch.setattr(reading, 'JSON_MEGABYTES', 0)
  with pytest.raises(ValueError, match='more than 0 MiB'):
    reading.json_file(tmp_path / 'a.json', 'x')
  with pytest.raises(ValueError, match=r'none.json cannot be read \(No such file'):
    reading.json_file(tmp_path / 'none.json', 'x')


def test_arrays_are_refused_by_their_headers_before_they_are_made(tmp_path, monkeypatch):
  path = npz(
    tmp_path / 'a.npz', big=npy('<f4', (10**12, 4)), small=npy('<f4', (2,), b'\0' * 8), text=npy('<U0', (2**62,))
  )
  assert reading.arrays(path, ['small'], 'x')['small'].tolist() == [0, 0]
  for name in ('big', 'text'):
    with pytest.raises(ValueError, match=r'GiB, more than 2; the variable VILD_JAX_ARRAY_GIGABYTES'):
      reading.arrays(path, ['small'], 'x', optional=[name])
  monkeypatch.setenv(reading.ARRAY_LIMIT, '0.000000001')
  with pytest.raises(ValueError, match='more than 1e-09'):
    reading.arrays(path, ['small'], 'x')
  for given in ('nan', '-1', 'much'):
    monkeypatch.setenv(reading.ARRAY_LIMIT, given)
    with pytest.raises(ValueError, match=f"VILD_JAX_ARRAY_GIGABYTES is '{given}'; expected a number of gigabytes"):
      reading.arrays(path, ['small'], 'x')


def test_arrays_that_are_none(tmp_path):
  path = npz(tmp_path / 'a.npz', pickled=npy('|O', (1,)), cut=npy('<f4', (9,)), noise=b'x' * 40, less=npy('<f4', (-1,)))
  for name in ('pickled', 'cut', 'noise', 'less', 'missing'):
    with pytest.raises(ValueError, match=r'a\.npz cannot be read'):
      reading.arrays(path, [name], 'x')


def test_an_array_file_holds_what_its_header_states(tmp_path):
  path, made = tmp_path / 'a.npy', io.BytesIO()
  np.save(made, np.arange(6.0).reshape(2, 3))
  path.write_bytes(made.getvalue())
  assert reading.array(path, 'x').tolist() == [[0, 1, 2], [3, 4, 5]]
  path.write_bytes(made.getvalue()[:-8])
  with pytest.raises(ValueError, match='its header states 48 bytes of numbers, and it holds 40'):
    reading.array(path, 'x')


@pytest.mark.parametrize(
  ('value', 'can'),
  [
    ('a', True),
    ('d/manifest.ocdbt', True),
    ('x' * 255, True),
    ('x' * 256, False),
    ('ä' * 128, False),
    ('', False),
    ('/etc/passwd', False),
    ('a/../b', False),
    ('a//b', False),
    ('a\u2028b', False),
    ('a\x00', False),
    ('\ud800', False),
    (7, False),
  ],
)
def test_what_can_name_a_file_below_a_folder(value, can):
  assert reading.is_place(value) is can
