"""Signals end a run quickly, with their own status, and leave nothing that is not whole."""

# ruff: noqa: PT012

import os
import random
import signal
import subprocess
import sys
import threading
import time
import weakref
from pathlib import Path

import pytest

from debug import attack_interrupts
from indextts_jax import files, interrupts
from indextts_jax.interrupts import Interrupted, check, handled, pending, shielded


def send(number: int) -> None:
    """A signal to this process, and the time for its handler to run."""
    os.kill(os.getpid(), number)
    for _ in range(1000):
        pass


@pytest.mark.parametrize(("number", "status"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_the_first_signal_is_an_exception(number, status):
    before = [signal.getsignal(each) for each in interrupts.SIGNALS]
    with pytest.raises(KeyboardInterrupt) as caught, handled():
        assert pending() is None
        send(number)
        time.sleep(10)
    assert isinstance(caught.value, Interrupted)
    assert (caught.value.number, caught.value.status) == (number, status)
    assert [signal.getsignal(each) for each in interrupts.SIGNALS] == before
    assert pending() is None
    check()


def test_what_was_swallowed_is_remembered():
    with pytest.raises(Interrupted), handled():
        try:
            send(signal.SIGINT)
            time.sleep(10)
        except BaseException:  # as some libraries do
            pass
        assert pending() == signal.SIGINT
        with pytest.raises(Interrupted):
            check()
    with pytest.raises(Interrupted) as caught, handled():  # without another check, at the end
        try:
            send(signal.SIGINT)
            time.sleep(10)
        except KeyboardInterrupt:
            raise ValueError("something else") from None
    assert isinstance(caught.value.__cause__, ValueError)


def test_what_a_callback_drops_comes_again(capsys):
    """As from JAX's: Python calls them from C, prints their exceptions, and goes on."""

    class Thing:
        pass

    def callback(_: object) -> None:
        send(signal.SIGINT)
        time.sleep(10)

    thing = Thing()
    reference = weakref.ref(thing, callback)
    begin = time.perf_counter()
    with pytest.raises(Interrupted), handled():
        del thing
        assert pending() == signal.SIGINT
        time.sleep(10)
    assert time.perf_counter() - begin < 5
    assert reference() is None
    assert capsys.readouterr().err == ""


def test_other_exceptions_pass():
    with pytest.raises(ZeroDivisionError), handled():
        _ = 1 / 0
    with pytest.raises(SystemExit), handled():
        sys.exit(3)


def test_a_shield_holds_a_signal_back():
    done = []
    with pytest.raises(Interrupted), handled():
        with shielded():
            with shielded():
                send(signal.SIGTERM)
            done.append("inside")
        done.append("after")
    assert done == ["inside"]


def test_a_shielded_block_can_wait_for_threads_that_write(tmp_path):
    """As a batch job does, which finishes what has begun."""
    with pytest.raises(Interrupted), handled(), shielded():
        send(signal.SIGTERM)
        thread = threading.Thread(target=files.write_whole, args=(tmp_path / "a", b"whole"))
        thread.start()
        thread.join()
    assert (tmp_path / "a").read_bytes() == b"whole"


def test_blocks_in_blocks_and_other_threads_change_nothing():
    with handled():
        within = [signal.getsignal(each) for each in interrupts.SIGNALS]
        with handled():
            assert [signal.getsignal(each) for each in interrupts.SIGNALS] == within
        assert [signal.getsignal(each) for each in interrupts.SIGNALS] == within
    errors = []

    def other() -> None:
        try:
            with handled(), shielded():
                pass
        except BaseException as error:
            errors.append(error)

    thread = threading.Thread(target=other)
    thread.start()
    thread.join()
    assert errors == []


def test_ignored_signals_stay_ignored():
    """As of a program under nohup."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with handled():
            send(signal.SIGHUP)
            assert pending() is None
    finally:
        signal.signal(signal.SIGHUP, before)


def test_no_jax():
    code = "import indextts_jax.interrupts, sys; sys.exit('jax' in sys.modules)"
    subprocess.run([sys.executable, "-c", code], check=True, cwd=Path(__file__).parent.parent)


TWICE = """
import os, signal, sys, time
from pathlib import Path
from indextts_jax import files, interrupts
with interrupts.handled(), files.whole(Path("out")) as partial:
    (partial / "file").write_text("1")
    said = "ready"
    while True:
        try:
            print(said, flush=True)
            time.sleep(100)
        except KeyboardInterrupt:
            said = "again"
"""


def test_a_second_signal_ends_at_once_and_leaves_nothing(tmp_path):
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parent.parent)}
    process = subprocess.Popen(
        [sys.executable, "-c", TWICE], cwd=tmp_path, env=environment, stdout=subprocess.PIPE, text=True
    )
    assert process.stdout is not None
    for number, line in ((signal.SIGINT, "ready\n"), (signal.SIGTERM, "again\n")):
        assert process.stdout.readline() == line
        assert len(os.listdir(tmp_path)) == 1
        process.send_signal(number)
    assert process.wait(30) == 128 + signal.SIGTERM
    assert os.listdir(tmp_path) == []


def test_a_write_that_is_interrupted_leaves_what_was_there(tmp_path, monkeypatch):
    path = tmp_path / "out.wav"
    path.write_text("old")
    sync = os.fsync

    def interrupted(file: int) -> None:
        sync(file)
        send(signal.SIGINT)

    monkeypatch.setattr(os, "fsync", interrupted)
    with pytest.raises(Interrupted), handled():
        files.write_whole(path, b"new")
    assert path.read_text() == "old"
    assert os.listdir(tmp_path) == ["out.wav"]


def test_a_signal_that_was_dropped_keeps_a_folder_from_appearing(tmp_path):
    with pytest.raises(Interrupted), handled(), files.whole(tmp_path / "out"):
        try:
            send(signal.SIGINT)
            time.sleep(10)
        except KeyboardInterrupt:
            pass
    assert os.listdir(tmp_path) == []


def test_an_attack_on_convert(tmp_path):
    """debug/attack_interrupts.py has more of them."""
    rng = random.Random(0)
    arguments, output = attack_interrupts.commands(tmp_path)["convert"]
    for number in interrupts.SIGNALS:
        folder = tmp_path / str(number)
        folder.mkdir()
        begun = rng.choice([True, False])
        end = attack_interrupts.interrupt(
            arguments, folder, number, rng.uniform(0, 1.5), ready=lambda at=folder, b=begun: not b or any(at.iterdir())
        )
        assert end.fault(output) is None, end
