"""Every command and snippet of docs/ is run, in order, on images in miniature; those of test_stranger there.

Added to what a page says: flags that make training short (docs_blocks.SMALL), and --dry-run for training whose run
folder the page does not use again, except the first. A block marked `no-run: REASON` is parsed, flags and all; one
marked `needs: PACKAGE` is run where the package is installed.
"""

import re
import shutil
import subprocess
from importlib.util import find_spec
from pathlib import Path

import numpy as np
import pytest
from helpers import miniature
from helpers.docs_blocks import (
    FOLLOWED,
    ROOT,
    TRAINING,
    Block,
    check_flags,
    commands,
    parse_only,
    prose,
    read_blocks,
    run_line,
)
from helpers.pictures import write_pictures
from PIL import Image

from stml_semi.data.benchmarks import facts as benchmarks

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md"))]
BACKBONES = {
    "facebook/dinov2-small": "dinov2",
    "facebook/dinov2-base": "dinov2",
    "facebook/dino-vits16": "vit",
    "microsoft/resnet-50": "resnet",
}

OWN_PICTURES = {"search.md"}
"""Pages that make the images which they use."""


@pytest.fixture(scope="session")
def world(make_backbone, tmp_path_factory) -> Path:
    """What the pages speak of: class folders, loose images, a table, archives, backbones of the hub's names."""
    folder = tmp_path_factory.mktemp("world")
    for number in range(34):
        write_pictures(folder / "birds" / f"class {number}", 4, seed=number)
    for number in range(4):
        write_pictures(folder / "other-birds" / f"other {number}", 4, seed=100 + number)
    for number in range(33):
        write_pictures(folder / "photos" / str(number), 4, seed=number)
    for path in sorted(folder.glob("photos/*/*.png")):  # Any depth; the names differ.
        path.rename(folder / "photos" / f"{path.parent.name}-{path.name}")
    Image.open(folder / "birds" / "class 3" / "0.png").save(folder / "query.jpg")
    rows = [f"birds/class {number}/{i}.png,{number}" for number in range(34) for i in range(4)]
    (folder / "items.csv").write_text("\n".join(["file,sku", *rows]) + "\n")
    for name, kind in BACKBONES.items():
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).symlink_to(make_backbone(kind))
    miniature.build("cub", folder / "downloads")
    subprocess.run(["tar", "-czf", "CUB_200_2011.tgz", "-C", "downloads", "CUB_200_2011"], cwd=folder, check=True)
    miniature.build("inat", folder / "inat")
    for name in ("cars", "sop"):
        miniature.build(name, folder / "data" / name)
    (folder / "X").symlink_to("birds")
    (folder / "Y").symlink_to("photos")
    for name in ("cli.py", "recipes", "scripts", "benchmarks"):
        (folder / name).symlink_to(ROOT / name)
    return folder


@pytest.fixture
def scratch(world, tmp_path, monkeypatch) -> Path:
    """A copy of the world, as working directory and home."""
    shutil.copytree(world, tmp_path / "w", symlinks=True)
    monkeypatch.chdir(tmp_path / "w")
    monkeypatch.setenv("HOME", str(tmp_path / "w"))
    monkeypatch.setenv("MPLCONFIGDIR", str(tmp_path / "matplotlib"))
    monkeypatch.delenv("STML_DATA", raising=False)
    counted = dict(benchmarks.BENCHMARKS)
    miniature.replace_counts(counted)
    for name, known in counted.items():
        monkeypatch.setitem(benchmarks.BENCHMARKS, name, known)
    return tmp_path / "w"


def needed_later(line: str, rest: list[str]) -> bool:
    """Whether the run folder of a training command is named again."""
    found = re.search(r"--output-dir (\S+)", line)
    return found is not None and any(found[1] in later for later in rest)


@pytest.mark.slow
@pytest.mark.parametrize("page", [p for p in PAGES if p not in FOLLOWED], ids=lambda page: str(page.relative_to(ROOT)))
def test_every_snippet_of_a_page_runs(page, scratch, monkeypatch):
    if page.name in OWN_PICTURES:
        shutil.rmtree("birds")
        shutil.rmtree("photos")
    blocks = read_blocks(page)
    lines = [line for block in blocks if block.language == "bash" and not block.info for line in commands(block.text)]
    if any("runs/demo" in line for line in lines):
        run_line("stml-semi sup --labeled kanji --output-dir runs/demo", dry=False)
    names: dict[str, object] = {"__name__": "__main__"}
    trained = False
    for block in blocks:
        place = f"{page.name}:{block.line}"
        if block.language == "yaml":
            Path(block.info).write_text(block.text)
        elif block.language == "python":
            code = compile(block.text, place, "exec")
            if not _missing(block.info):
                exec(code, names)
        elif block.language == "bash":
            if block.info:
                _only_checked(block, monkeypatch)
                continue
            for line in commands(block.text):
                del lines[0]
                trains = any(re.search(rf"(cli.py|stml-semi) {command} ", line) for command in TRAINING)
                dry = trains and "--resume" not in line and trained and not needed_later(line, lines)
                with _named(place, line):
                    run_line(line, dry=dry)
                trained = trained or trains
        else:
            assert block.language == "text", f"{place}: a block is bash, python, yaml or text"


def _missing(info: str) -> list[str]:
    """Packages, or more, that are not here, of a block that is marked `needs: THIS THAT`."""
    assert not info or info.startswith("needs: "), info
    return [name for name in info.removeprefix("needs: ").split() if find_spec(name) is None]


class _named:
    """Adds the line of a page to what went wrong with it."""

    def __init__(self, place: str, line: str) -> None:
        self.text = f"{place}: {line}"

    def __enter__(self) -> None: ...

    def __exit__(self, _kind: object, error: BaseException | None, _trace: object) -> None:
        if error is not None:
            error.add_note(self.text)


def _only_checked(block: Block, monkeypatch: pytest.MonkeyPatch) -> None:
    assert re.fullmatch(r"no-run: \S.*", block.info), f"line {block.line}: say why: ```bash no-run: REASON"
    subprocess.run(["bash", "-n", "-c", block.text], check=True)
    monkeypatch.setattr("stml_semi.training.resolve.check_installed", lambda names: None)
    for line in commands(block.text) if "#SBATCH" not in block.text else block.text.replace("\\\n", " ").splitlines():
        parse_only(line)


@pytest.mark.parametrize("page", FOLLOWED, ids=lambda page: str(page.relative_to(ROOT)))
def test_what_is_not_run_is_parsed(page, monkeypatch):
    for block in read_blocks(page):
        if block.language == "bash" and block.info:
            _only_checked(block, monkeypatch)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_commands_are_in_fenced_blocks_and_flags_in_sentences_exist(page):
    text = prose(page)
    assert not re.findall(r"^ {4}(?:python|accelerate|stml-semi|make|pip|torchrun) .*", text, re.MULTILINE)
    for inline in re.findall(r"`stml-semi ([^`]+)`", text):
        if "COMMAND" not in inline:
            check_flags(inline.replace("...", "").split())
    from typer.main import get_command

    from stml_semi.cli.app import app

    known = {"--help", *(o for c in _all_commands(get_command(app)) for p in c.params for o in p.opts)}
    said = {
        flag for code in re.findall(r"`([^`]+)`", text) for flag in re.findall(r"(?<![\w-])--[a-z][a-z0-9_-]+", code)
    }
    foreign = {
        *("--num_processes", "--machine_rank", "--num_cpu_threads_per_process"),  # accelerate
        *("--requeue", "--signal"),  # Slurm
        *("--shm-size", "--ipc"),  # docker
        *("--hangul", "--steps"),  # scripts/pretrain_tiny.py
        *("--validation", "--finished", "--backbones"),  # scripts/build_kanji.py, benchmarks/
    }
    assert said - known - foreign == set()


def _all_commands(command):
    yield command
    for part in getattr(command, "commands", {}).values():
        yield from _all_commands(part)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_links_lead_somewhere(page):
    text = prose(page)
    targets = re.findall(r"\]\(([^)\s]+)\)", text) + re.findall(r"^\[[^]]+\]: (\S+)", text, re.MULTILINE)
    local = [target.split("#")[0] for target in targets if "://" not in target]
    missing = [target for target in local if target and not (page.parent / target).exists()]
    assert not missing


def test_the_miniature_world_has_what_a_default_batch_needs(world):
    """Otherwise the flags that are added would hide what a page forgot."""
    assert len(list((world / "birds").iterdir())) >= 2 * 16
    assert len(list((world / "photos").iterdir())) >= 120
    assert np.asarray(Image.open(world / "query.jpg")).ndim == 3


def test_messages_that_are_explained_are_ours():
    page = (ROOT / "docs" / "troubleshooting.md").read_text()
    quoted = re.findall(r"^\| `([^`]+)`", page, re.MULTILINE) + re.findall(r"^- \*\*`([^`]+)`", page, re.MULTILINE)
    assert len(quoted) >= 6
    source = " ".join(path.read_text() for path in (ROOT / "stml_semi").rglob("*.py"))
    assert [message for message in quoted if message not in source] == []


def test_every_page_is_listed():
    index = (ROOT / "docs" / "README.md").read_text()
    pages = {path.name for path in (ROOT / "docs").glob("*.md")} - {"README.md"}
    assert {name for name in pages if f"]({name})" not in index} == set()
