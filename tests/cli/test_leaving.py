"""A process is gone when its command has ended, whatever threads still live."""

import subprocess
import sys
import time

import pytest

PROGRAM = """
import atexit, sys, threading, time
from stml_semi.cli.terminal import leaves_at_once, whole_output
atexit.register(lambda: print("tidied"))
threading.Thread(target=time.sleep, args=(60,)).start()
with leaves_at_once(), whole_output():
    print("worked")
    {end}
"""


@pytest.mark.parametrize(
    ("end", "code"), [("sys.exit()", 0), ("sys.exit(2)", 2), ("sys.exit('bad')", 1), ("sys.exit(0)", 0)]
)
def test_it_leaves_its_threads_behind(end, code):
    began = time.monotonic()
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM.format(end=end)],
        capture_output=True,
        text=True,
        timeout=50,
    )
    assert (done.returncode, done.stdout.split()) == (code, ["worked", "tidied"])
    assert time.monotonic() - began < 40


def test_an_internal_error_keeps_its_traceback():
    program = PROGRAM.format(end="raise KeyError('inside')").replace("args=(60,)", "args=(0,)")
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert done.returncode == 1
    assert "Traceback" in done.stderr
    assert "KeyError: 'inside'" in done.stderr
