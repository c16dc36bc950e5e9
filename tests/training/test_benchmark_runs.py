"""Runs on benchmarks by name, from official archives in miniature."""

import json
from pathlib import Path

import pytest
from helpers import miniature
from helpers.pictures import write_pictures
from helpers.real_runs import run_here

from stml_semi.data.benchmarks.facts import BENCHMARKS
from stml_semi.run_folder.recipe import build_config, read_recipe
from stml_semi.training.resolve import resolve
from stml_semi.training.run import run

SMALL = [
    *("--backbone", "tiny-resnet", "--max-steps", "2", "--label-warmup-steps", "0", "--num-workers", "0"),
    *("--labeled-batch-size", "8", "--images-per-class", "2", "--unlabeled-batch-size", "10", "--log-every", "1"),
]


def command(*arguments: object) -> str:
    """What cli.py prints on standard output."""
    done = run_here(*map(str, arguments))
    assert done.returncode == 0, done.stderr
    assert "Warning" not in done.stderr
    return done.stdout


@pytest.fixture
def miniature_counts(monkeypatch):
    for known in list(BENCHMARKS.values()):
        monkeypatch.setitem(BENCHMARKS, known.name, known)
    miniature.replace_counts(BENCHMARKS)


@pytest.mark.slow
def test_cub_and_inat_from_archives_to_evaluation(miniature_counts, tmp_path, monkeypatch):
    """CUB is prepared first, iNaturalist is read where it lies."""
    monkeypatch.delenv("STML_DATA", raising=False)
    monkeypatch.chdir(tmp_path)
    root = tmp_path / "data"
    miniature.build("cub", tmp_path / "downloads")
    miniature.build("inat", root / "inat")
    command("data", "prepare", "cub", "--source", "downloads", "--data-root", root)
    (tmp_path / "downloads").rename(tmp_path / "gone")
    sources = ["--labeled", "cub", "--unlabeled", "inat", "--data-root", root]
    printed = command("semi", *sources, *SMALL, "--output-dir", "run")
    assert "cub:test" in printed
    claim = "no label of its classes was used; iNaturalist 2018 holds 81 of CUB's 100 test species"
    assert claim in " ".join(printed.split())
    lines = [json.loads(line) for line in (tmp_path / "run/metrics.jsonl").read_text().splitlines()]
    assert [line["step"] for line in lines if "loss" in line] == [1, 2]
    scores = [line for line in lines if "model" in line]
    assert {line["data"] for line in scores} == {"cub:test"}
    assert {line["num_queries"] for line in scores} == {24}
    assert (tmp_path / "run/bad_images.jsonl").read_text() == ""
    evaluated = command("evaluate", "--model", "run", "--data", "cub:test", "--data-root", root, "--json")
    assert json.loads(evaluated)["recall@1"] == pytest.approx(scores[-2]["recall@1"], abs=1e-6)
    # The claim is made once, in run.json, and said again wherever results are shown: also by an export elsewhere.
    assert json.loads((tmp_path / "run/run.json").read_text())["claim"] == claim
    root.rename(tmp_path / "moved")
    command("export", "run", "--output", "exported")
    for card in (tmp_path / "run/model/README.md", tmp_path / "exported/README.md"):
        assert f"percent. {claim[0].upper()}{claim[1:]}." in card.read_text()
    for page in (tmp_path / "run/report.html", Path(command("report", "run").strip())):
        assert claim in (tmp_path / page).read_text().replace("&#39;", "'")


def test_a_pool_says_nothing_of_what_is_evaluated(tmp_path):
    write_pictures(tmp_path / "mine" / "a", 2)
    mine = str(tmp_path / "mine")
    assert resolve("semi", {"labeled": mine, "unlabeled": "inat"}).eval is None
    assert resolve("semi", {"labeled": "cub", "unlabeled": "inat"}).eval == "cub:test"
    assert resolve("unsup", {"unlabeled": "cub"}).eval == "cub:test"
    assert resolve("unsup", {"unlabeled": "nabirds"}).eval is None


@pytest.mark.slow
def test_classes_kept_for_evaluation_make_a_figure(tmp_path, monkeypatch):
    for name in "abcdefgh":
        write_pictures(tmp_path / "mine" / name, 3, seed=ord(name))
    monkeypatch.chdir(tmp_path)
    values = {"labeled": "mine", "test_classes": 0.5, "backbone": "tiny-resnet", "max_steps": 2, "num_workers": 0}
    values |= {"labeled_batch_size": 8, "images_per_class": 2, "output_dir": "run", "log_every": 1}
    result = run(resolve("sup", values))
    kept = json.loads((tmp_path / "run/test_classes.json").read_text())
    assert len(kept) == 4
    assert {(line["data"], line["num_queries"]) for line in result.lines} == {("mine (test classes)", 12)}
    assert result.claim == "no class shares its name with a trained one"
    assert len(run(resolve("sup", values | {"resume": True, "max_steps": 3})).lines) > len(result.lines)


RECIPES = sorted((Path(__file__).parents[2] / "recipes").glob("*.yaml"))
NEEDED = {recipe.stem for recipe in RECIPES} - {"kanji"}


def test_there_is_a_recipe_for_every_setting():
    settings = ["unsup-cub", "unsup-cars", "unsup-sop"]
    settings += ["semi-cub-nabirds", "semi-cars-compcars", "semi-cub-inat", "semi-inshop-fashion200k"]
    assert {f"{setting}-{backbone}" for setting in settings for backbone in ("resnet50", "vits")} <= NEEDED


@pytest.mark.parametrize("recipe", RECIPES, ids=lambda path: path.stem)
def test_every_recipe_is_explained_and_valid(recipe):
    head = " ".join(line.lstrip("# ") for line in recipe.read_text().splitlines() if line.startswith("#"))
    words = read_recipe(recipe)
    command = "unsup" if "labeled" not in words else "semi"
    assert f"accelerate launch cli.py {command} --recipe recipes/{recipe.name}" in head
    assert "Hardware: " in head
    assert "What to expect: " in head
    config = resolve(command, words)
    assert config.eval == f"{(config.labeled or config.unlabeled or '').split(':')[0]}:test"
    assert config == build_config(config.model_dump())


@pytest.fixture(scope="module")
def miniatures(tmp_path_factory) -> Path:
    root = tmp_path_factory.mktemp("data")
    for name in ("cub", "cars", "sop", "inshop", "inat", "nabirds", "compcars", "fashion200k"):
        miniature.build(name, root / name)
    return root


@pytest.mark.slow
@pytest.mark.parametrize("name", sorted(NEEDED))
def test_every_recipe_runs(name, miniatures, miniature_counts, make_backbone, tmp_path, capsys):
    """Two steps with a small backbone of the same kind, on archives of few images; all else as in the recipe."""
    recipe = read_recipe(Path(__file__).parents[2] / "recipes" / f"{name}.yaml")
    small = {
        "backbone": str(make_backbone("resnet" if name.endswith("resnet50") else "vit")),
        "image_size": None,
        "max_steps": 2,
        "label_warmup_steps": 0 if "labeled" in recipe else None,
        "labeled_batch_size": 8,
        "unlabeled_batch_size": 2 * recipe["num_neighbors"],
        "log_every": 1,
        "num_workers": 0,
        "no_report": True,
        "data_root": str(miniatures),
        "output_dir": str(tmp_path / "run"),
    }
    result = run(resolve("semi" if "labeled" in recipe else "unsup", recipe | small))
    steps = [line["step"] for line in result.folder.log.lines() if "loss" in line]
    assert steps == [1, 2]
    assert {line["model"] for line in result.lines} == {"frozen", "student", "teacher"}
    assert {line["data"] for line in result.lines} == {recipe["eval"]}
    assert (tmp_path / "run" / "model").is_dir()
    assert ("non-commercial" in capsys.readouterr().err) == any(
        pool in name for pool in ("nabirds", "compcars", "inat", "inshop")
    )
