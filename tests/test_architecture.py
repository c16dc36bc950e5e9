"""The layer rules of the design: who may import whom, and what a mere import may cost."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

import stml_semi

PACKAGE = Path(stml_semi.__file__).parent
# Imports point upward in this list only.
ORDER = [
    "config",
    "errors",
    "machine",
    "energy",
    "trackers",
    "distributed",
    "losses.distances",
    "losses.relations",
    "losses.neighborhoods",
    "losses.stml",
    "losses.proxy",
    "losses.balance",
    "neighbors",
    "metrics",
    "data.images",
    "data.views",
    "models.backbone",
    "models.torchvision_layout",
    "models.noise",
    "models.adaptation",
    "models.embedder",
    "models.build",
    "models.teacher",
    "best",
    "objective",
    "health",
    "optimization",
    "data.benchmarks",
    "data.archives",
    "data.folders",
    "data.tables",
    "data.columns",
    "data.specs",
    "data.classes",
    "data.shards",
    "data.store",
    "data.sources",
    "data.streams",
    "data.unlabeled",
    "data.hub_copies",
    "data.prepare",
    "data.commands",
    "data.plan",
    "data.live",
    "data.pool",
    "data.loading",
    "data.cache",
    "data.names",
    "data.overlap",
    "evaluation",
    "checkpoint",
    "run_folder",
    "failures",
    "batches",
    "refresh",
    "sheet",
    "survey",
    "interruption",
    "trainer",
    "honesty",
    "dry_run",
    "costs",
    "report.projection",
    "report.charts",
    "card_curves",
    "card_text",
    "card",
    "push",
    "export",
    "hub",
    "onnx_export",
    "progress",
    "scoring",
    "inputs",
    "index",
    "embed",
    "search",
    "search_page",
    "browse.finder",
    "browse.server",
    "report.affinities",
    "report.pictures",
    "report.intervals",
    "report.retrieval",
    "report.gallery",
    "report.headline",
    "report.teacher",
    "report.relations",
    "report.pool_sample",
    "report.unlabeled",
    "report.page",
    "report.run_end",
    "resolve",
    "run",
    "run_export",
    "reporting",
    "doctor",
    "tables",
    "terminal",
    "commands",
    "cli",
]
TENSORS_ONLY = [
    "losses.distances",
    "losses.relations",
    "losses.neighborhoods",
    "losses.stml",
    "losses.proxy",
    "neighbors",
    "metrics",
]


def modules() -> dict[str, Path]:
    found = {}
    for path in PACKAGE.rglob("*.py"):
        name = ".".join(path.relative_to(PACKAGE).with_suffix("").parts)
        if path.name != "__init__.py":
            found[name] = path
    return found


def imports(path: Path) -> set[str]:
    names = set()
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            names |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            names.add(node.module)
            names |= {f"{node.module}.{alias.name}" for alias in node.names}
    return names


def test_the_list_is_complete():
    assert set(ORDER) == set(modules())


@pytest.mark.parametrize("name", ORDER)
def test_imports_point_upward(name):
    own = {n.removeprefix("stml_semi.") for n in imports(modules()[name]) if n.startswith("stml_semi.")} & set(ORDER)
    below = [other for other in own if ORDER.index(other) >= ORDER.index(name)]
    assert not below


@pytest.mark.parametrize("name", TENSORS_ONLY)
def test_losses_metrics_and_neighbors_see_tensors_only(name):
    foreign = {"transformers", "datasets", "accelerate", "torch.distributed"}
    assert not {n for n in imports(modules()[name]) for f in foreign if n == f or n.startswith(f + ".")}


def test_only_one_file_talks_to_torch_distributed():
    users = {name for name, path in modules().items() if "torch.distributed" in imports(path)}
    assert users == {"distributed"}


def test_help_and_import_load_nothing_heavy():
    code = (
        "import sys; sys.argv = ['cli.py', 'semi', '--help']\n"
        "import stml_semi\n"
        "from stml_semi.cli import app\n"
        "try: app()\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'torchvision', 'transformers', 'datasets', 'accelerate', 'numpy'} & set(sys.modules)\n"
        "print('HEAVY', sorted(heavy))"
    )
    output = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "--labeled-batch-size" in output
    assert "HEAVY []" in output
