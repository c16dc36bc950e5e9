"""A stranger's first hour: the wheel in an environment of its own, an empty folder, five classes, what the pages say.

Commands are typed as they are printed, in order. Added are two steps in place of hundreds, and small images, because
the backbone is a tiny one that has the name of the page's.
"""

import os
import shlex
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from helpers.docs_blocks import FOLLOWED, ROOT, TRAINING, commands, read_blocks
from helpers.pictures import write_pictures
from helpers.warm import Command, run_warm
from PIL import Image


@pytest.fixture(scope="module")
def environment(tmp_path_factory) -> dict[str, str]:
    """Holds the wheel; what it depends on comes from the environment of the tests."""
    folder = tmp_path_factory.mktemp("environment")
    wheel = ["wheel", "--quiet", "--no-index", "--no-deps", "--no-build-isolation", "--wheel-dir", folder, ROOT]
    subprocess.run([sys.executable, "-m", "pip", *wheel], check=True)
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", folder / "venv"], check=True)
    python = folder / "venv" / "bin" / "python"
    (made,) = folder.glob("*.whl")
    install = ["--python", python, "install", "--quiet", "--no-index", "--no-deps", made]
    subprocess.run([sys.executable, "-m", "pip", *install], check=True)
    (_packages(python) / "dependencies.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return os.environ | {"PATH": f"{python.parent}:/usr/bin:/bin", "HF_HUB_OFFLINE": "1"}


def _packages(python: Path) -> Path:
    (found,) = (python.parents[1] / "lib").glob("python*/site-packages")
    return found


@pytest.fixture
def home(tmp_path, make_backbone) -> Path:
    """Images as someone has them, and nothing of this project."""
    for number, name in enumerate(["robin", "wren", "owl", "finch", "heron"]):
        write_pictures(tmp_path / "birds" / name, 6, seed=number)
        write_pictures(tmp_path / "other-birds" / f"young {name}", 3, seed=50 + number)
        write_pictures(tmp_path / "photos" / "2021" / name, 6, seed=10 + number)
    (tmp_path / "photos" / "notes.txt").write_text("not an image")
    Image.open(tmp_path / "birds" / "owl" / "0.png").save(tmp_path / "query.jpg")
    (tmp_path / "facebook").mkdir()
    (tmp_path / "facebook" / "dinov2-small").symlink_to(make_backbone("dinov2"))
    return tmp_path


@pytest.mark.slow
@pytest.mark.parametrize("page", FOLLOWED, ids=lambda page: page.name)
def test_the_pages_can_be_followed(page, home, environment):
    found = subprocess.run(["stml-semi", "--version"], cwd=home, env=environment, capture_output=True, check=True)
    assert b"0." in found.stdout
    blocks = [block for block in read_blocks(page) if block.language == "bash" and not block.info]
    lines = [line for block in blocks for line in commands(block.text)]
    installed = _packages(Path(environment["PATH"].partition(":")[0]) / "python")
    assert len(lines) > 5
    for line in lines:
        words = shlex.split(line, comments=True)
        assert words[0] == "stml-semi"
        if words[1] in TRAINING:
            words += ["--max-steps", "2", "--image-size", "28", "--num-workers", "0"]
        said = run_warm(Command(words[1:], environment, home, installed), timeout=600)
        assert said.returncode == 0, f"{line}\n{said.stdout}\n{said.stderr}"
        assert "Traceback" not in said.stderr
        assert str(ROOT) not in said.stdout + said.stderr
