"""Defaults adapt to the data; what the user sets stays, and is refused where it cannot be met."""

from typing import Any

import pytest
from helpers.pictures import write_pictures

from stml_semi.cli.train import field_values
from stml_semi.config import TrainConfig
from stml_semi.data.run_tables import check_sizes, open_tables
from stml_semi.models.build import build_embedder, open_configured_backbone
from stml_semi.run_folder.recipe import build_config
from stml_semi.runtime.errors import BadInput
from stml_semi.training.resolve import Fitted, fit_to_data, resolve, with_learning_rate


@pytest.fixture
def fitted(tmp_path):
    """Fits the defaults to a few classes of four images each and some loose ones."""

    def fit(classes: int, loose: int = 0, **values: Any) -> Fitted:
        for number in range(classes):
            write_pictures(tmp_path / "labeled" / f"c{number}", 4, seed=number)
        sources = {"labeled": str(tmp_path / "labeled")}
        if loose:
            write_pictures(tmp_path / "loose", loose, seed=99)
            sources["unlabeled"] = str(tmp_path / "loose")
        config = build_config(sources | values)
        tables = open_tables(config)
        result = fit_to_data(config, tables)
        check_sizes(result.config, tables)
        return result

    return fit


def test_a_batch_holds_all_of_few_classes_and_images(fitted):
    config, notes = fitted(3, 33)
    assert (config.labeled_batch_size, config.images_per_class) == (12, 4)
    assert (config.unlabeled_batch_size, config.num_neighbors) == (30, 5)
    assert notes == (
        "--labeled-batch-size 12 (fits 3 classes)",
        "--unlabeled-batch-size 30 (fits 33 unlabeled images)",
    )


def test_fewer_images_than_a_neighborhood(fitted):
    config, _ = fitted(3, 4)
    assert (config.unlabeled_batch_size, config.num_neighbors) == (4, 4)


def test_a_given_batch_of_few_classes_shows_more_images_of_each(fitted):
    config, notes = fitted(6, labeled_batch_size=64)
    assert (config.labeled_batch_size, config.images_per_class) == (64, 16)
    assert notes == ("--images-per-class 16 (fits 6 classes)",)


def test_what_is_given_and_cannot_be_met_is_refused(fitted):
    with pytest.raises(BadInput, match="--labeled-batch-size"):
        fitted(3, labeled_batch_size=64, images_per_class=4)
    with pytest.raises(BadInput, match="--unlabeled-batch-size"):
        fitted(3, 33, unlabeled_batch_size=120)


def test_a_default_batch_is_a_multiple_of_a_given_part():
    config = build_config({"labeled": "a", "unlabeled": "b", "images_per_class": 3, "num_neighbors": 7})
    assert (config.labeled_batch_size, config.unlabeled_batch_size) == (63, 119)
    with pytest.raises(BadInput, match="--labeled-batch-size 64 is not a multiple"):
        build_config({"labeled": "a", "labeled_batch_size": 64, "images_per_class": 3})


def test_steps_follow_the_data_and_then_the_warm_up_and_the_evaluations(fitted):
    small = fitted(3, 33).config
    assert (small.max_steps, small.eval_every, small.label_warmup_steps) == (300, 75, 30)
    assert fitted(3, 33, max_steps=40).config.eval_every == 500
    assert fitted(3, lr_warmup_steps=400).config.max_steps == 2000
    kanji = build_config({"labeled": "kanji", "unlabeled": "kanji-more"})
    assert fit_to_data(kanji, open_tables(kanji)).config.max_steps == 2000
    alone = build_config({"labeled": "kanji"})
    assert fit_to_data(alone, open_tables(alone)).config.max_steps == 100 * 440 // 64


def test_a_recipe_of_a_fitted_run_is_fitted_already(fitted):
    config, _ = fitted(3, 33)
    again = build_config(config.model_dump())
    assert fit_to_data(again, open_tables(again)) == (again, ())


@pytest.mark.parametrize(
    ("backbone", "values", "rate"),
    [
        ("vit", {}, 1e-5),
        ("vit", {"train_layers": "last:1"}, 3e-5),
        ("vit", {"lora_rank": 2}, 1e-4),
        ("vit", {"train_layers": "last:0"}, 1e-3),
        ("vit", {"learning_rate": 0.5}, 0.5),
        ("tiny-resnet", {}, 1e-4),
        ("convnext", {}, 1e-4),
    ],
)
def test_the_learning_rate_follows_from_what_trains(make_backbone, backbone, values, rate):
    name = backbone if backbone == "tiny-resnet" else str(make_backbone(backbone))
    config = TrainConfig(labeled="x", backbone=name, **values)
    embedder = build_embedder(config, open_configured_backbone(config))
    assert with_learning_rate(config, embedder, None).peak_learning_rate == rate


def test_trusted_images_are_worth_a_higher_rate(fitted, make_backbone):
    """Where trust is measured, which takes five classes, and for convolutional networks."""

    def rates(backbone: str, classes: int, **values: Any) -> TrainConfig:
        config = fitted(classes, 12, backbone=backbone, **values).config
        embedder = build_embedder(config, open_configured_backbone(config))
        return with_learning_rate(config, embedder, open_tables(config).labeled)

    few, found, vit = rates("tiny-resnet", 4), rates("tiny-resnet", 5), rates(str(make_backbone("vit")), 5)
    assert [(one.rate(0), one.rate(1)) for one in (few, found, vit)] == [(1e-4, 1e-4), (1e-4, 1e-3), (1e-5, 1e-5)]
    assert found.rate(0.5) == pytest.approx(5.5e-4)
    slow = rates("tiny-resnet", 5, learning_rate=1e-6)
    assert (slow.rate(0), slow.rate(0.5)) == (1e-6, 1e-6)
    with pytest.raises(BadInput, match="--label-learning-rate 0.1 is above --learning-rate, which is 0.001: raise"):
        rates("tiny-resnet", 5, label_learning_rate=0.1)
    assert found.model_copy(update={"unlabeled": None}).rate(0) == found.peak_learning_rate


def test_the_baseline_of_a_semi_run_has_the_rate_of_labels_alone(tmp_path):
    """`sup` with the config.yaml of a run, whose learning rate is that of trusted unlabeled images."""
    (tmp_path / "config.yaml").write_text("labeled: a\nunlabeled: b\nlearning_rate: 1e-3\nlabel_learning_rate: 1e-4\n")
    flags = {"recipe": str(tmp_path / "config.yaml")}
    assert resolve("sup", field_values(flags)).learning_rate == 1e-4
    assert resolve("sup", field_values(flags | {"learning_rate": "3e-4"})).learning_rate == 3e-4
    semi = resolve("semi", field_values(flags))
    assert (semi.learning_rate, semi.label_learning_rate) == (1e-3, 1e-4)
    assert resolve("semi", field_values(flags | {"learning_rate": "5e-5"})).label_learning_rate == "auto"
