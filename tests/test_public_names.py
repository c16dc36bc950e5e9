"""What other people's programs may rely on: the names of the package, and that importing it costs nothing."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
from helpers.docs_blocks import ROOT, read_blocks

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


@pytest.mark.parametrize("name", sorted({*NAMES} - {"__version__"}))
def test_each_has_an_example_that_runs(name):
    """The blocks of the page are run by test_docs."""
    code = "\n".join(block.text for block in read_blocks(ROOT / "docs" / "python.md") if block.language == "python")
    assert f"stml_semi.{name}" in code


@pytest.mark.slow
def test_type_checkers_know_the_types_of_the_public_names(tmp_path):
    """pyright --verifytypes, of the files where the public names live; attributes elsewhere are for us alone."""
    python = Path(sys.executable)
    known = os.environ | {"VIRTUAL_ENV": str(python.parents[1]), "PATH": f"{python.parent}:{os.environ['PATH']}"}
    command = [python.parent / "pyright", "--verifytypes", "stml_semi", "--ignoreexternal", "--outputjson"]
    said = subprocess.run(command, cwd=tmp_path, env=known, capture_output=True, text=True).stdout
    symbols = json.loads(said)["typeCompleteness"]["symbols"]
    homes = {f"stml_semi.{home.split(':')[0]}" for home in stml_semi._HOMES.values()}
    public = [one for one in symbols if one["name"].startswith(tuple(homes)) or one["name"].count(".") == 1]
    assert {"stml_semi.train", "stml_semi.search.index.Index.search"} <= {one["name"] for one in public}
    unknown = {one["name"] for one in public if not one["isTypeKnown"] or one["isTypeAmbiguous"]}
    assert unknown == set()
