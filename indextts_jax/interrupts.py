"""Signals that end a run: Ctrl-C (SIGINT), `kill` (SIGTERM), a terminal that closes (SIGHUP).

    with interrupts.handled():
        for step in steps:
            interrupts.check()
            ...

The first signal raises `Interrupted` wherever the main thread is, so that every `finally` runs. That alone is not
enough: an exception in a callback from C++ is dropped, and one inside a library may come out as another error. So what
is dropped is raised again a moment later, and the signal is remembered: `check` asks for it between steps, and
`handled` when its block ends. A second signal ends the process at once, even where the main thread is deep inside a
compiler: a thread of its own waits for it, removes what is temporary, and leaves.
"""

import contextlib
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, NoReturn

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Interrupted(KeyboardInterrupt):
    """A signal told the process to end: `number` is the signal's."""

    def __init__(self, number: int):
        super().__init__(f"interrupted by {signal.Signals(number).name}")
        self.number = number

    @property
    def status(self) -> int:
        """What a command ends with: 130 for SIGINT, 143 for SIGTERM, 129 for SIGHUP."""
        return 128 + self.number


class _State:
    """What the handler and the rest of this module share; one per process, for signals are too."""

    active = False
    pending: int | None = None  # the first signal
    shields = 0  # how many blocks of the main thread a signal must not break into
    deferred = False  # a signal came in such a block
    again = False  # what it raised was dropped, and is to be raised again


_state = _State()
_AGAIN = 0  # no signal has that number
_last: list[Callable[[], object]] = []


def before_leaving(function: Callable[[], object]) -> None:
    """Have `function` called when a second signal ends the process. It runs in another thread than the main one."""
    _last.append(function)


def pending() -> int | None:
    """The signal that told this process to end, if one did while `handled` was active."""
    return _state.pending


def check() -> None:
    """Raise Interrupted if a signal came, even one whose exception was swallowed: for between the steps of a run.

    Not while the main thread is in a `shielded` block, whichever thread asks: what that block waits for is to be done.
    """
    if _state.pending is not None and not _state.shields:
        raise Interrupted(_state.pending)


@contextmanager
def shielded() -> Iterator[None]:
    """A short block that a first signal does not break into; if one came, Interrupted is raised at its end."""
    if threading.current_thread() is not threading.main_thread():  # into which no signal breaks
        yield
        return
    _state.shields += 1
    try:
        yield
    finally:
        _state.shields -= 1
        if _state.deferred and not _state.shields:
            _state.deferred = False
            check()


class handled:
    """Within the block, signals end the run as this module's text says; before and after, as they did.

    Raises Interrupted at the end of the block when a signal came and its exception did not arrive there. A signal that
    is ignored (as under nohup) stays ignored. Outside the main thread, and inside another such block, it does nothing.
    """

    def __enter__(self) -> None:
        self._outermost = not _state.active and threading.current_thread() is threading.main_thread()
        if not self._outermost:
            return
        _state.active, _state.pending, _state.shields, _state.deferred, _state.again = True, None, 1, False, False
        self._read, self._write = os.pipe()
        os.set_blocking(self._write, False)
        self._wakeup = signal.set_wakeup_fd(self._write, warn_on_full_buffer=False)
        self._watcher = threading.Thread(target=_watch, args=(self._read,), name="interrupts", daemon=True)
        self._watcher.start()
        self._hooks = sys.excepthook, sys.unraisablehook  # where C++ leaves exceptions that it cannot pass on

        def excepthook(kind: type[BaseException], error: BaseException, trace: Any) -> None:
            if not self._dropped(error):
                self._hooks[0](kind, error, trace)

        def unraisablehook(unraisable: Any) -> None:
            if not self._dropped(unraisable.exc_value):
                self._hooks[1](unraisable)

        sys.excepthook, sys.unraisablehook = excepthook, unraisablehook
        heeded = [number for number in SIGNALS if signal.getsignal(number) not in (signal.SIG_IGN, None)]
        self._handlers = {number: signal.signal(number, _receive) for number in heeded}
        _state.shields = 0
        if _state.deferred:
            self.__exit__(None, None, None)

    def __exit__(self, kind: Any, error: BaseException | None, _: Any) -> None:
        if not self._outermost:
            return
        _state.shields += 1  # from here on a signal is remembered alone
        for number, handler in self._handlers.items():
            signal.signal(number, handler)
        signal.set_wakeup_fd(self._wakeup)
        sys.excepthook, sys.unraisablehook = self._hooks
        os.close(self._write)
        self._watcher.join()
        os.close(self._read)
        number = _state.pending
        _state.active, _state.pending, _state.shields, _state.deferred = False, None, 0, False
        if number is not None and (error is None or isinstance(error, Exception)):
            raise Interrupted(number) from error

    def _dropped(self, error: BaseException | None) -> bool:
        """Whether an interrupt, or what became of it, was dropped, which is then raised again."""
        if _state.pending is None:
            return False
        if isinstance(error, Interrupted):
            os.write(self._write, bytes([_AGAIN]))
        return True


def _receive(number: int, _: Any) -> None:
    """The handler of a signal: Python calls it in the main thread, between two instructions."""
    if _state.pending is not None and not _state.again:
        return  # `_watch` ends the process
    _state.pending, _state.again = _state.pending or number, False
    if _state.shields:
        _state.deferred = True
    else:
        raise Interrupted(_state.pending)


def _watch(pipe: int) -> None:
    """Read the signals as they come, and leave at the second one."""
    first, echoes, main = 0, 0, threading.main_thread().ident or 0
    while numbers := os.read(pipe, 64):
        for number in numbers:
            if number == _AGAIN and first:
                time.sleep(0.02)  # until the callback is over
                _state.again = True
                echoes += 1
                signal.pthread_kill(main, first)
            elif number in SIGNALS and echoes:
                echoes -= 1
            elif number in SIGNALS and first:
                leave(128 + number)
            elif number in SIGNALS:
                first = number


def leave(status: int) -> NoReturn:
    """End the process at once, without what Python does at its end: threads that still compile would keep it."""
    for function in (*_last, sys.stdout.flush, sys.stderr.flush):
        with contextlib.suppress(BaseException):
            function()
    os._exit(status)
