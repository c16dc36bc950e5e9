"""The house keeps its shape: what may import what, and what stays cheap."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import stml_semi

PACKAGE = Path(stml_semi.__file__).parent
# A room imports only from rooms to its right; rooms on one floor (|) do not know each other.
LAYERS = (
    "cli > training > curation > search | report > sharing > models | run_folder > data > losses | metrics > neighbors"
    " > config | runtime"
)
FLOORS = [floor.split(" | ") for floor in LAYERS.split(" > ")]
LEVEL = {room: level for level, floor in enumerate(FLOORS) for room in floor}
MODULES = sorted(p.relative_to(PACKAGE) for p in PACKAGE.rglob("*.py"))


def imports(path: Path) -> set[str]:
    """Dotted names that a file imports, anywhere in it."""
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def violations(package: Path) -> list[str]:
    """Imports that do not point to the right."""
    found = []
    for path in sorted(package.rglob("*.py")):
        room = path.relative_to(package).with_suffix("").parts[0]
        for name in sorted(imports(path)):
            other = name.split(".")[1] if name.startswith("stml_semi.") else room
            if other != room and other in LEVEL and LEVEL.get(room, -1) >= LEVEL[other]:
                found.append(f"{path.relative_to(package)} imports {name}")
    return found


def test_imports_point_to_the_right():
    assert violations(PACKAGE) == []


def test_a_planted_import_to_the_left_is_found(tmp_path):
    (tmp_path / "data").mkdir()
    (tmp_path / "data" / "views.py").write_text("def f():\n    from stml_semi.models.build import build_embedder\n")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "build.py").write_text("import stml_semi.run_folder.folder\nimport stml_semi.data.views\n")
    assert violations(tmp_path) == [
        "data/views.py imports stml_semi.models.build.build_embedder",
        "models/build.py imports stml_semi.run_folder.folder",
    ]


def test_every_room_has_a_place():
    rooms = {p.parts[0].removesuffix(".py") for p in MODULES} - {"__init__", "__main__"}
    assert rooms == set(LEVEL)


@pytest.mark.parametrize("room", ["losses", "metrics", "neighbors"])
def test_losses_metrics_and_neighbors_see_tensors_only(room):
    foreign = {"transformers", "datasets", "accelerate", "torch.distributed"}
    for path in MODULES:
        if path.parts[0].removesuffix(".py") == room:
            assert not {n for n in imports(PACKAGE / path) for f in foreign if f"{n}.".startswith(f"{f}.")}


def test_only_one_file_talks_to_torch_distributed():
    users = [
        str(path) for path in MODULES if any(f"{n}.".startswith("torch.distributed.") for n in imports(PACKAGE / path))
    ]
    assert users == ["runtime/distributed.py"]


def test_help_and_import_load_nothing_heavy():
    code = (
        "import sys; sys.argv = ['cli.py', 'semi', '--help']\n"
        "import stml_semi\n"
        "from stml_semi.cli.app import app\n"
        "try: app()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'torchvision', 'transformers', 'datasets', 'accelerate', 'numpy'} & set(sys.modules)\n"
        "print('HEAVY', sorted(heavy))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "--labeled-batch-size" in output
    assert "HEAVY []" in output
