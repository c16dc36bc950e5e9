from pathlib import Path

import pytest
import yaml

from stml_semi.config import TrainConfig, flag
from stml_semi.run_folder.recipe import build_config, read_recipe

PANELS = ["Data", "Model", "Objective", "Optimization", "Hardware", "Run"]


def test_every_field_has_help_and_one_panel():
    for name, field in TrainConfig.model_fields.items():
        assert field.description, name
        assert [m for m in field.metadata if m in PANELS], name


def test_yaml_round_trip():
    config = build_config({"labeled": "a", "unlabeled": "b", "learning_rate": 3e-5, "resume": True})
    values = yaml.safe_load(config.to_yaml())
    assert "resume" not in values
    assert build_config(values) == config.model_copy(update={"resume": False})


def test_recipe_numbers_become_numbers(tmp_path):
    # PyYAML reads 1e-4 (no dot) as text.
    recipe = tmp_path / "r.yaml"
    recipe.write_text("learning_rate: 1e-4\nmax-steps: 1e3\nbackbone: x\nmixed_precision: no\n")
    values = read_recipe(recipe)
    assert values["learning_rate"] == "1e-4"
    config = build_config(values)
    assert config.learning_rate == 1e-4
    assert config.max_steps == 1000
    assert config.mixed_precision == "no"


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"max_step": 5}, "unknown key 'max_step' in the command line: did you mean 'max_steps'"),
        ({"zebra": 5}, "unknown key 'zebra'.*--help"),
        ({"max_steps": "many"}, "--max-steps 'many': input should be a valid integer"),
        ({"max_steps": 0}, "--max-steps 0: input should be greater than or equal to 1"),
        ({"momentum": 1.0}, "--momentum 1.0: input should be less than 1"),
        ({"balance": "strong"}, "--balance 'strong': input should be 'unit', 'ratio' or 'fixed'"),
        (
            {"labeled": "a", "labeled_batch_size": 63},
            "--labeled-batch-size 63 is not a multiple of --images-per-class 4: take 60 or 64",
        ),
        ({"unlabeled": "a", "unlabeled_batch_size": 3}, "--unlabeled-batch-size 3 is not a multiple.*take 5 or 5"),
        ({"labeled": "a", "labeled_batch_size": 4}, "double --labeled-batch-size"),
        (
            {"labeled": "a", "unlabeled": "b", "max_steps": 9, "label_warmup_steps": 9},
            "--label-warmup-steps 9 leaves none of --max-steps 9",
        ),
        ({"learning_rate": float("inf")}, "--learning-rate inf: input should be a finite number"),
        ({"lr_warmup_steps": 10, "max_steps": 10}, "--lr-warmup-steps 10 must be less than --max-steps 10"),
        ({"seed": 2**32}, "--seed 4294967296: input should be less than"),
        ({"resume": True, "overwrite": True}, "--resume keeps.*--overwrite deletes"),
    ],
)
def test_wrong_values_name_flag_and_fix(values, message):
    with pytest.raises(ValueError, match=message) as error:
        build_config(values)
    assert "\n" not in str(error.value)


def test_a_recipe_that_ships_is_found_by_its_name(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    assert read_recipe("kanji")["labeled"] == "kanji"
    with pytest.raises(ValueError, match=r"did you mean semi-cub-inat-vits\?"):
        read_recipe("semi-cub-inat-vit")
    Path("kanji").write_text("seed: 3")
    assert read_recipe("kanji") == {"seed": 3}  # A file of the user's comes first.


def test_missing_recipe_suggests_the_closest(tmp_path):
    (tmp_path / "birds.yaml").write_text("seed: 1")
    with pytest.raises(ValueError, match=r"--recipe .*bird.yaml: no such file.*did you mean .*birds.yaml"):
        read_recipe(tmp_path / "bird.yaml")


@pytest.mark.parametrize("text", ["- a\n- b\n", "just words", "a: [1,\n"])
def test_a_recipe_that_is_no_mapping_is_refused(tmp_path, text):
    recipe = tmp_path / "r.yaml"
    recipe.write_text(text)
    with pytest.raises(ValueError, match="--recipe") as error:
        read_recipe(recipe)
    assert "\n" not in str(error.value)


def test_unknown_recipe_key_names_the_file(tmp_path):
    recipe = tmp_path / "r.yaml"
    recipe.write_text("learning_rat: 1\n")
    with pytest.raises(ValueError, match=r"unknown key 'learning_rat' in .*r.yaml: did you mean 'learning_rate'"):
        read_recipe(recipe)


def test_warmup_default_belongs_to_semi_and_sup():
    assert build_config({"labeled": "a", "unlabeled": "b", "max_steps": 500}).warmup_steps == 50
    assert build_config({"unlabeled": "b", "max_steps": 500}).warmup_steps == 0
    assert build_config({"labeled": "a", "unlabeled": "b", "label_warmup_steps": 7}).warmup_steps == 7


def test_flag_names():
    assert flag("labeled_batch_size") == "--labeled-batch-size"
