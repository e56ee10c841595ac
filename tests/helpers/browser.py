"""Drives a headless Chromium by the DevTools protocol over a pair of pipes."""

from __future__ import annotations

import base64
import contextlib
import fcntl
import itertools
import json
import os
import select
import shutil
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

CHROMIUM = shutil.which('chromium') or shutil.which('chromium-browser') or shutil.which('google-chrome')
_SECONDS = 60  # to wait for anything, on a machine that does much else
_FLAGS = (
  '--headless=new',
  '--no-sandbox',
  '--disable-gpu',
  '--disable-dev-shm-usage',
  '--disable-background-networking',
  '--disable-component-update',
  '--disable-extensions',
  '--disable-sync',
  '--no-first-run',
  '--host-resolver-rules=MAP * ~NOTFOUND , EXCLUDE 127.0.0.1',
  '--remote-debugging-pipe',
)


class Page:
  """One tab. `events` are those of the protocol so far, as (method, params)."""

  def __init__(self, commands: int, answers: int):
    self._commands, self._answers, self._buffer = commands, answers, b''
    self._numbers, self._session = itertools.count(1), None
    self.events: list[tuple[str, dict[str, Any]]] = []
    target = self.call('Target.createTarget', url='about:blank')['targetId']
    self._session = self.call('Target.attachToTarget', targetId=target, flatten=True)['sessionId']
    for domain in ('Page', 'Runtime', 'Network', 'DOM', 'Log'):
      self.call(f'{domain}.enable')

  def call(self, method: str, **params: Any) -> dict[str, Any]:
    """Sends a command and returns its result."""
    number = next(self._numbers)
    message = {'id': number, 'method': method, 'params': params}
    if self._session:
      message['sessionId'] = self._session
    os.write(self._commands, json.dumps(message).encode() + b'\0')
    while True:
      answer = self._message()
      if answer.get('id') == number:
        assert 'error' not in answer, f'{method}: {answer["error"]["message"]}'
        return answer['result']
      if 'method' in answer:
        self.events.append((answer['method'], answer['params']))

  def _message(self) -> dict[str, Any]:
    while b'\0' not in self._buffer:
      assert select.select([self._answers], [], [], _SECONDS)[0], f'no word of the browser for {_SECONDS} s'
      part = os.read(self._answers, 1 << 20)
      assert part, 'the browser has ended'
      self._buffer += part
    message, _, self._buffer = self._buffer.partition(b'\0')
    return json.loads(message)

  def js(self, code: str) -> Any:
    """The value of an expression; a promise is awaited."""
    done = self.call('Runtime.evaluate', expression=code, returnByValue=True, awaitPromise=True, userGesture=True)
    if 'exceptionDetails' in done:
      raise AssertionError(f'{code}: {done["exceptionDetails"].get("exception", {}).get("description")}')
    return done['result'].get('value')

  def until(self, code: str) -> Any:
    """Waits until an expression is true, and returns its value."""
    end = time.monotonic() + _SECONDS
    while not (value := self.js(code)):
      assert time.monotonic() < end, f'still not: {code}; the page says {self.js("document.body.innerText")!r}'
      time.sleep(0.03)
    return value

  def text(self, selector: str) -> str:
    """The text of an element as it is shown."""
    return self.js(f'document.querySelector({json.dumps(selector)}).innerText')

  def open(self, address: str) -> None:
    """Goes to a page and waits until it is loaded."""
    self.call('Page.navigate', url=address)
    self.until(f'document.readyState === "complete" && location.href.startsWith({json.dumps(address)})')

  def resize(self, width: int, height: int, *, pixels: float = 1, phone: bool = False) -> None:
    """Sets the size of the window in CSS pixels, of which each is `pixels` of the device."""
    self.call('Emulation.setDeviceMetricsOverride', width=width, height=height, deviceScaleFactor=pixels, mobile=phone)
    self.call('Emulation.setTouchEmulationEnabled', enabled=phone)

  def choose(self, selector: str, path: Path) -> None:
    """Gives a file to an input of files, as a user chooses it."""
    root = self.call('DOM.getDocument')['root']['nodeId']
    node = self.call('DOM.querySelector', nodeId=root, selector=selector)['nodeId']
    self.call('DOM.setFileInputFiles', files=[str(path)], nodeId=node)

  def mouse(self, kind: str, x: float, y: float) -> None:
    """Sends 'Pressed', 'Moved' or 'Released' of the left button at CSS pixels of the window."""
    held = {'button': 'left', 'buttons': int(kind != 'Released'), 'clickCount': 1}
    self.call('Input.dispatchMouseEvent', type=f'mouse{kind}', x=x, y=y, **(held if kind != 'Hover' else {}))

  def hover(self, x: float, y: float) -> None:
    """Moves the mouse with no button held."""
    self.call('Input.dispatchMouseEvent', type='mouseMoved', x=x, y=y)

  def click(self, selector: str) -> None:
    """Clicks in the middle of an element with the mouse."""
    x, y = self.js(
      f'(() => {{ const e = document.querySelector({json.dumps(selector)}); e.scrollIntoView({{block: "center"}});'
      'const r = e.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; })()'
    )
    self.mouse('Pressed', x, y)
    self.mouse('Released', x, y)

  def drag(self, start: tuple[float, float], end: tuple[float, float]) -> None:
    """Drags the mouse from one place of the window to another."""
    self.mouse('Pressed', *start)
    self.mouse('Moved', (start[0] + end[0]) / 2, (start[1] + end[1]) / 2)
    self.mouse('Moved', *end)
    self.mouse('Released', *end)

  def key(self, key: str, code: int = 0, *, shift: bool = False) -> None:
    """Presses a key, such as 'Enter' (13), 'Tab' (9) or 'ArrowDown' (40), and lets it go."""
    about = {'key': key, 'code': key, 'windowsVirtualKeyCode': code, 'modifiers': 8 if shift else 0}
    text = {'text': '\r'} if key == 'Enter' else {}
    self.call('Input.dispatchKeyEvent', type='keyDown', **about, **text)
    self.call('Input.dispatchKeyEvent', type='keyUp', **about)

  def type(self, text: str) -> None:
    """Writes into what has the focus."""
    self.call('Input.insertText', text=text)

  def screenshot(self, path: Path) -> None:
    """Saves the whole page as a PNG."""
    done = self.call('Page.captureScreenshot', captureBeyondViewport=True)
    path.write_bytes(base64.b64decode(done['data']))

  def complaints(self) -> list[str]:
    """What the console says of errors, and all exceptions, so far."""
    self.js('1')  # whatever happened before has arrived then
    found = [p['exceptionDetails'].get('exception', {}) for m, p in self.events if m == 'Runtime.exceptionThrown']
    found += [p['entry'] for m, p in self.events if m == 'Log.entryAdded' and p['entry']['level'] == 'error']
    calls = [p for m, p in self.events if m == 'Runtime.consoleAPICalled' and p['type'] in ('error', 'warning')]
    return [str(one) for one in [*found, *calls]]

  def requests(self) -> list[dict[str, Any]]:
    """All requests so far, as the protocol's Network.Request."""
    self.js('1')
    return [params['request'] for method, params in self.events if method == 'Network.requestWillBeSent']


@contextlib.contextmanager
def browser(folder: Path) -> Iterator[Page]:
  """Starts a browser whose profile is below `folder`, and ends it with all its processes."""
  pairs = [os.pipe(), os.pipe()]
  # Above 9, so that the shell can give the child its numbers 3 and 4 without losing one of them.
  high = [tuple(fcntl.fcntl(end, fcntl.F_DUPFD_CLOEXEC, 10) for end in pair) for pair in pairs]
  for end in itertools.chain(*pairs):
    os.close(end)
  (read, commands), (answers, write) = high
  program = f'exec "$@" 3<&{read} 4>&{write} {read}<&- {write}>&-'
  process = subprocess.Popen(
    ['bash', '-c', program, 'bash', CHROMIUM, *_FLAGS, f'--user-data-dir={folder / "profile"}'],
    pass_fds=(read, write),
    stdout=subprocess.DEVNULL,
    stderr=subprocess.DEVNULL,
    start_new_session=True,
    env={**os.environ, 'HOME': str(folder)},
  )
  os.close(read)
  os.close(write)
  try:
    yield Page(commands, answers)
  finally:
    os.close(commands)  # Chromium ends when the pipe does
    os.close(answers)
    with contextlib.suppress(subprocess.TimeoutExpired):
      process.wait(20)
    if process.returncode is None:
      os.killpg(process.pid, 9)
      process.wait()
