"""The model card: metadata that the hub accepts, numbers that the run measured, nothing that is private."""

import io
import json
import re
import shlex
from typing import Any

import numpy as np
import pytest
import torch
import yaml
from helpers.command_line import call
from huggingface_hub import ModelCard
from PIL import Image

from stml_semi.run_folder.recipe import build_config
from stml_semi.sharing import card as cards
from stml_semi.sharing import origin
from stml_semi.sharing.card import (
    CardFacts,
    Origin,
    card_files,
    check_card,
    command_line,
    training_yaml,
)
from stml_semi.sharing.card_curves import draw_curves
from stml_semi.sharing.origin import find_origin, license_of
from stml_semi.sharing.trained import Weights

SCORES = {"recall@1": 0.5, "recall@2": 0.6, "r_precision": 0.4, "map@r": 0.3, "num_queries": 1200, "num_gallery": 1200}


def lines(data="kanji:test"):
    made = [(0, "frozen"), (50, "student"), (50, "teacher"), (100, "student"), (100, "teacher")]
    return [{"step": step, "data": data, "model": m, **SCORES, "recall@1": 0.5 + step / 1000} for step, m in made]


def facts(config, **changes):
    values = {"lines": lines(), "weights": "student", "step": 100, "size": (48, 48), "pooling": "mean_max"}
    origin = Origin("facebook/dinov2-small", ("user/birds",), "apache-2.0")
    return CardFacts(config, **{**values, "claim": "never trained on", "origin": origin, **changes})


def build(**values):
    return build_config(
        {"labeled": "kanji", "unlabeled": "user/birds", "eval": "kanji:test", "max_steps": 100, **values}
    )


def metadata(text: str) -> dict[str, Any]:
    return yaml.safe_load(text.split("---")[1])


def test_metadata_are_what_the_hub_reads():
    files = card_files(facts(build(backbone="facebook/dinov2-small")))
    data: Any = ModelCard(files["README.md"].decode()).data
    assert data.library_name == "sentence-transformers"
    assert data.pipeline_tag == "image-feature-extraction"
    assert data.base_model == "facebook/dinov2-small"
    assert data.license == "apache-2.0"
    assert data.datasets == ["user/birds"]
    assert data.metrics == ["recall@1", "recall@2", "r_precision", "map@r"]
    assert {result.metric_type: result.metric_value for result in data.eval_results}["recall@1"] == 0.6
    raw = metadata(files["README.md"].decode())
    assert None not in raw.values()
    assert raw["model-index"][0]["results"][0]["dataset"] == {"name": "kanji:test", "type": "kanji"}


def test_nothing_unknown_is_claimed():
    files = card_files(facts(build(), origin=Origin(None, (), None)))
    raw = metadata(files["README.md"].decode())
    assert not raw.keys() & {"license", "base_model", "datasets"}
    assert "No license is stated" in files["README.md"].decode()
    asked = card_files(facts(build(license="mit"), origin=Origin(None, (), "apache-2.0")))
    assert metadata(asked["README.md"].decode())["license"] == "mit"


def test_frozen_beside_trained_and_which_weights():
    text = card_files(facts(build(), weights="teacher", step=50))["README.md"].decode()
    assert "| frozen backbone, before training | 50.0 | 60.0 | 40.0 | 30.0 |" in text
    assert "| teacher (these weights) | 55.0 |" in text
    assert "| student | 55.0 |" in text
    assert "Weights: the **teacher**" in text
    assert "after 50 of 100 steps" in text
    assert "1,200 images" in text
    assert "2205.01903" in text
    for way in ("SentenceTransformer(", "AutoModel.from_pretrained(", "from stml_semi import load", "stml-semi embed"):
        assert way in text


def test_a_run_without_evaluation_has_a_card_too():
    files = card_files(CardFacts(build(eval=None), [], "student", 100, (8, 8), "cls", "", Origin(None, (), None)))
    text = files["README.md"].decode()
    assert "was not evaluated" in text
    assert "model-index" not in text


def test_folders_of_this_machine_stay_here(tmp_path):
    config = build(labeled=str(tmp_path / "birds"), output_dir=str(tmp_path / "run"), backbone=str(tmp_path / "vit"))
    files = card_files(facts(config)._replace(lines=lines(str(tmp_path / "birds"))))
    assert str(tmp_path) not in b"".join(files.values()).decode(errors="replace")
    assert "--labeled birds" in files["README.md"].decode()


def test_command_and_configuration_repeat_the_run():
    config = build(sigma=3, relations="batch", lora_rank=4, gradient_checkpointing=True)
    words = shlex.split(command_line(config))
    assert words[:2] == ["stml-semi", "semi"]
    assert words[-2:] != ["--overwrite"]
    assert "--gradient-checkpointing" in words
    assert words[words.index("--sigma") + 1] == "3.0"
    again = build_config(yaml.safe_load(training_yaml(config)))
    assert again == config


def test_origin_knows_folders_from_hub_ids(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "data" / "birds").mkdir(parents=True)
    (tmp_path / "vit").mkdir()
    (tmp_path / "vit" / "README.md").write_text("---\nlicense: mit\n---\n")
    config = build(labeled="kanji,data/birds", unlabeled="user/birds:train[:50%],photos.csv", backbone="vit")
    assert find_origin(config) == Origin(None, ("user/birds",), "mit")
    monkeypatch.setattr(origin, "license_of", lambda name: None)
    assert find_origin(build(backbone="facebook/dinov2-small")).base_model == "facebook/dinov2-small"
    assert find_origin(build(backbone="tiny-resnet")) == Origin(None, ("user/birds",), None)


def test_a_backbone_without_a_card_has_no_known_license(make_backbone):
    assert license_of(str(make_backbone("vit"))) is None
    assert license_of("tiny-resnet") == "apache-2.0"
    assert license_of("no/such-model") is None


@pytest.mark.parametrize(
    ("metadata", "problem"),
    [
        ("license: Apache 2.0", "--license Apache 2.0"),
        ("base_model: /home/me/vit", "base_model '/home/me/vit' is no hub id"),
        ("datasets: [a/b/c]", "datasets 'a/b/c' is no hub id"),
        ("metrics: []", "metrics has no value"),
    ],
)
def test_metadata_that_the_hub_would_refuse(metadata, problem):
    with pytest.raises(ValueError, match=problem):
        check_card(f"---\n{metadata}\n---\n")


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    from stml_semi.training.resolve import resolve
    from stml_semi.training.run import run as train

    folder = tmp_path_factory.mktemp("card") / "run"
    small = {"labeled_batch_size": 8, "images_per_class": 2, "num_workers": 0, "embedding_dim": 8, "momentum": 0.5}
    train(
        resolve("sup", {"labeled": "kanji", "eval": "kanji:train", "output_dir": str(folder), "max_steps": 2, **small})
    )
    return folder


def test_a_run_leaves_its_card(run):
    text = (run / "model" / "README.md").read_text()
    check_card(text)
    last = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    student = [line for line in last if line.get("model") == "student"][-1]
    assert f"| {100 * student['recall@1']:.1f} |" in text
    assert metadata(text)["license"] == "apache-2.0"
    assert build_config(yaml.safe_load((run / "model" / "training_config.yaml").read_text())).max_steps == 2


@pytest.mark.filterwarnings("ignore:The image decoding and encoding:DeprecationWarning")  # How others read files.
def test_every_way_to_use_it_works_as_the_card_says(run, tmp_path, monkeypatch, capsys, pictures):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "path" / "to" / "images").mkdir(parents=True)
    for place, picture in zip(("a.jpg", "b.jpg", "query.jpg", "path/to/images/1.jpg"), pictures, strict=False):
        picture.save(tmp_path / place)
    text = (run / "model" / "README.md").read_text().replace(cards.PLACE, str(run / "model"))
    found: list[dict[str, Any]] = [{}]
    for code in re.findall(r"```python\n(.*?)```", text, re.DOTALL):
        names = dict(found[-1])
        exec(code, names)
        found.append(names)
    _, served, backbone, own = found
    assert served["embeddings"].shape == (2, 8)
    assert torch.allclose(torch.tensor(served["embeddings"]), torch.tensor(own["embeddings"]), atol=1e-5)
    assert backbone["features"].shape[0] == 1
    commands = next(b for b in re.findall(r"```bash\n(.*?)```", text, re.DOTALL) if "stml-semi embed" in b).splitlines()
    ended = [call(monkeypatch, capsys, *shlex.split(command)[1:]) for command in commands]
    assert [code for code, _, _ in ended] == [0, 0], ended
    assert "path/to/images/1.jpg" in ended[1][1]


def test_the_curves_are_a_picture_beside_the_card(run):
    with Image.open(run / "model" / "training_curves.png") as picture:
        assert picture.format == "PNG"
        assert 400 < picture.width < 2000
    assert (
        "![Scores and losses over the steps of the training](training_curves.png)"
        in (run / "model" / "README.md").read_text()
    )
    scored = draw_curves(lines())
    assert scored is not None
    losses = [{"step": step, "labeled_loss": 10 / step, "relaxed_contrastive": 0.0} for step in (10, 20, 30)]
    with_losses = draw_curves([*lines(), *losses])
    assert with_losses is not None
    sizes = [Image.open(io.BytesIO(picture)).width for picture in (scored, with_losses)]
    assert sizes[1] == 2 * sizes[0]  # No panel for a term that was not trained.
    assert draw_curves([*lines(), *losses]) == with_losses
    assert draw_curves(losses[:1]) is None


def test_half_the_size(run, tmp_path, pictures):
    from safetensors.torch import load_file
    from sentence_transformers import SentenceTransformer

    from stml_semi import load
    from stml_semi.sharing.export_run import export_run

    export_run(str(run), str(tmp_path / "full"))
    export_run(str(run), str(tmp_path / "half"), dtype="bfloat16")
    for part in ("model.safetensors", "2_Dense/model.safetensors"):
        stored = load_file(tmp_path / "half" / part)
        assert {v.dtype for v in stored.values() if v.is_floating_point()} == {torch.bfloat16}
        assert (tmp_path / "half" / part).stat().st_size < 0.6 * (tmp_path / "full" / part).stat().st_size
    assert "stored as bfloat16" in (tmp_path / "half" / "README.md").read_text()
    assert "stored as" not in (tmp_path / "full" / "README.md").read_text()
    expected = torch.tensor(load(tmp_path / "full").encode(pictures))
    ours = torch.tensor(load(tmp_path / "half").encode(pictures))
    served: Any = SentenceTransformer(str(tmp_path / "half"), device="cpu").encode(pictures)  # pyright: ignore[reportArgumentType]
    assert 0 < float((ours - expected).abs().max()) < 0.05
    torch.testing.assert_close(torch.tensor(served), ours, rtol=0, atol=1e-5)


def test_fewer_dimensions(run, tmp_path, pictures):
    from sentence_transformers import SentenceTransformer

    from stml_semi import load
    from stml_semi.sharing.export_run import export_run

    export_run(str(run), str(tmp_path / "short"), truncate_dim=3)
    full = load(run).encode(pictures)
    expected = full[:, :3] / np.linalg.norm(full[:, :3], axis=1, keepdims=True)
    np.testing.assert_allclose(load(run, truncate_dim=3).encode(pictures), expected, atol=1e-5)
    np.testing.assert_allclose(load(tmp_path / "short").encode(pictures), expected, atol=1e-5)
    for folder, cut in ((tmp_path / "short", None), (run / "model", 3)):
        served: Any = SentenceTransformer(str(folder), device="cpu", truncate_dim=cut).encode(
            pictures,  # pyright: ignore[reportArgumentType]
            normalize_embeddings=True,
        )
        np.testing.assert_allclose(served, expected, atol=1e-5)
    text = (tmp_path / "short" / "README.md").read_text()
    assert "a vector of 3 numbers" in text
    assert "measured with 8 dimensions, of which this model keeps the leading 3" in text
    for wrong in (0, 9):
        with pytest.raises(ValueError, match=f"--truncate-dim {wrong}: embeddings have 8 dimensions"):
            export_run(str(run), str(tmp_path / "wrong"), truncate_dim=wrong)
        with pytest.raises(ValueError, match=f"truncate_dim={wrong}: .* has 8 dimensions"):
            load(run, truncate_dim=wrong)
    with pytest.raises(ValueError, match="truncate_dim=3: tiny-resnet is a bare backbone"):
        load("tiny-resnet", truncate_dim=3)


def test_a_card_says_what_each_size_costs():
    sizes = {"64": {"recall@1": 0.5, "map@r": 0.25}, "256": {"recall@1": 0.6, "map@r": 0.35}}
    known = [line | {"truncated": sizes} if line.get("model") == "student" else line for line in lines()]

    def card(**changes):
        return card_files(facts(build(), lines=known, **changes))["README.md"].decode()

    text = card()
    assert "| 64 | 50.0 | 25.0 |\n| 256 | 60.0 | 35.0 |\n| 512 | " in text
    short = card(width=128)
    assert "| 64 | 50.0 | 25.0 |" in short
    assert "| 256 |" not in short
    assert "keeps the leading 128" in short
    assert "leading dimensions" not in card(weights="teacher")


def test_export_writes_student_or_teacher(run, tmp_path, pictures):
    from safetensors.torch import load_file

    from stml_semi import load
    from stml_semi.sharing.export_run import export_run

    stored = load_file(run / "checkpoints" / "step-2" / "modules.safetensors")
    both: list[tuple[Weights, str]] = [("student", "embedder"), ("teacher", "teacher.model")]
    for weights, prefix in both:
        made = export_run(str(run), str(tmp_path / "model"), weights=weights, license="mit", overwrite=True)
        assert made.step == 2
        dense = next((tmp_path / "model").glob("*_Dense")) / "model.safetensors"
        head = load_file(dense)["linear.weight"]
        expected = stored[f"{prefix}.head_f.weight"]
        torch.testing.assert_close(head, torch.cat([expected, expected], 1))
        text = (tmp_path / "model" / "README.md").read_text()
        assert f"Weights: the **{weights}**" in text
        assert metadata(text)["license"] == "mit"
        assert load(tmp_path / "model").encode(pictures).shape == (8, 8)
    student = load(run).encode(pictures)
    export_run(str(run), str(tmp_path / "again"))
    torch.testing.assert_close(load(tmp_path / "again").encode(pictures), student)


def test_export_never_replaces_anything_but_a_model(run, tmp_path):
    from stml_semi.sharing.export_run import export_run

    (tmp_path / "notes.txt").write_text("mine")
    for place in (tmp_path, run, run.parent):
        with pytest.raises(ValueError, match="--output .*something other than a model"):
            export_run(str(run), str(place))
    with pytest.raises(ValueError, match="no run folder"):
        export_run(str(tmp_path), str(tmp_path / "new"))
    assert (tmp_path / "notes.txt").exists()
    export_run(str(run), str(tmp_path / "new"))
    with pytest.raises(ValueError, match="--output .*new: holds a model; add --overwrite to replace it"):
        export_run(str(run), str(tmp_path / "new"))
