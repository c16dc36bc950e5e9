"""What other people's programs may rely on: the names of the package, and that importing it costs nothing."""

import subprocess
import sys

import stml_semi

NAMES = ["Index", "TrainConfig", "__version__", "embed", "evaluate", "load", "retrieval_metrics", "train"]


def test_the_public_names():
    assert stml_semi.__all__ == NAMES
    for name in NAMES:
        assert getattr(stml_semi, name) is not None
    assert set(NAMES) <= set(dir(stml_semi))
    assert not hasattr(stml_semi, "no_such_name")


def test_importing_the_package_loads_nothing():
    code = "import sys; before = set(sys.modules); import stml_semi; print(*sorted(set(sys.modules) - before))"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert [name for name in loaded if name.startswith("stml_semi")] == ["stml_semi"]
    assert {name.split(".")[0] for name in loaded} <= {"stml_semi", *sys.stdlib_module_names}
