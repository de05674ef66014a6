"""ctrl-C, SIGTERM and SIGHUP end the program: one line, nothing it started left alive, exit code 128 + the signal.

No exception is thrown into whatever the program happens to do: inside an import, a destructor or a database commit
it would be lost, or be told as a traceback. A thread hears the signal instead. Work that wants to be closed says so
(`on_stop`), is told, and has `PATIENCE` seconds to end; otherwise, and at a second signal, the program ends at once.
That is safe anywhere, as kill -9 is: files are written whole or not at all, and the system opens the locks.
"""

import contextlib
import os
import select
import signal
import sys
import threading
from collections.abc import Callable, Iterator

PATIENCE = 8.0
"""Seconds that work has to close itself and to write its report."""

_NAMES = ("SIGINT", "SIGTERM", "SIGHUP")

_listeners: list[Callable[[int], None]] = []
_heard: list[int] = []
_told: list[str] = []


class Stopped(KeyboardInterrupt):
    """The program was asked to end by the signal `number`; raised only where work waits."""

    def __init__(self, number: int) -> None:
        super().__init__(f"signal {number}")
        self.number = number


def take_over() -> None:
    """Hear the signals from now on, for the rest of this process. One that is ignored, as by nohup, stays ignored."""
    if os.name != "posix":
        return  # ctrl-C raises KeyboardInterrupt there, as Python has it
    reader, writer = os.pipe()
    os.set_blocking(writer, False)
    signal.set_wakeup_fd(writer, warn_on_full_buffer=False)
    for name in _NAMES:
        if signal.getsignal(getattr(signal, name)) is not signal.SIG_IGN:
            signal.signal(getattr(signal, name), lambda number, frame: None)
    threading.Thread(target=_listen, args=(reader,), daemon=True).start()


@contextlib.contextmanager
def on_stop(end: Callable[[int], None]) -> Iterator[None]:
    """Call `end` with the signal, from another thread, when one is heard within this context."""
    _listeners.append(end)
    try:
        yield
    finally:
        _listeners.remove(end)


def exit_code(stopped: KeyboardInterrupt) -> int:
    """What the system's tools return after a signal."""
    return 128 + getattr(stopped, "number", int(signal.SIGINT))


def tell(stopped: KeyboardInterrupt, note: str = "") -> None:
    """The one line on standard error; a second one is not written."""
    number = exit_code(stopped) - 128
    what = "interrupted" if number == signal.SIGINT else f"ended by {signal.Signals(number).name}"
    if not _told:
        _told.append(what)
        with contextlib.suppress(OSError):  # the terminal may be what ended
            os.write(2, f"doge-lab: {what}{note and ': '}{note}\n".encode())


def end_if_stopped() -> None:
    """The program's last step: after a signal it ends here, whatever happened since."""
    if _heard:
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, ValueError):
                stream.flush()
        _end(_heard[0])


def _listen(reader: int) -> None:
    number = os.read(reader, 1)[0]
    _heard.append(number)
    asked = list(_listeners)
    for end in asked:
        end(number)
    if asked:
        select.select([reader], [], [], PATIENCE)
    _end(number)


def _end(number: int) -> None:
    for end in list(_listeners):
        end(number)
    if not _told and os.isatty(2):
        with contextlib.suppress(OSError):
            os.write(2, b"\r\x1b[K\x1b[?25h")  # a live view hides the cursor
    stopped = Stopped(number)
    tell(stopped)
    os._exit(exit_code(stopped))
