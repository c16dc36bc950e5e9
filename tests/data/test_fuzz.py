"""The image reader over a corpus of damaged files: an image or `BadImage`, soon, in bounded memory."""

import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
# Seconds of work for a file, and bytes beyond what the process holds after its imports.
SECONDS, MEMORY = 10, 3 * 2**29

_READ = """
import resource, signal, sys, time
from helpers.fuzz_corpus import corpus
from stml_semi.data.images import BadImage, read_image, read_pixels

seconds, memory = map(int, sys.argv[1:])
class TooSlow(BaseException): pass
def ring(*_): raise TooSlow
signal.signal(signal.SIGPROF, ring)
used = int(open("/proc/self/statm").read().split()[0]) * resource.getpagesize()
resource.setrlimit(resource.RLIMIT_AS, (used + memory, used + memory))
good = bad = 0
for name, data in corpus():
    for read in (read_image, read_pixels):
        signal.setitimer(signal.ITIMER_PROF, seconds)
        try:
            image = read({"bytes": data, "path": None})
            good += 1
        except BadImage as error:
            assert 0 < len(str(error)) < 130 and "\\n" not in str(error), (name, str(error))
            bad += 1
        except BaseException as error:
            sys.exit(f"{name}: {read.__name__}: {type(error).__name__}: {error}")
        signal.setitimer(signal.ITIMER_PROF, 0)
print(good, bad)
"""


@pytest.mark.skipif(sys.platform != "linux", reason="limits of memory are Linux's")
def test_damaged_files_are_read_or_refused_soon_and_in_bounded_memory():
    environment = {"PYTHONPATH": f"{ROOT}:{ROOT / 'tests'}:{':'.join(sys.path)}", "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", _READ, str(SECONDS), str(MEMORY)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, check=False, timeout=300)
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    good, bad = map(int, done.stdout.split())
    assert good + bad >= 2 * 400
    assert good > 50
    assert bad > 400
