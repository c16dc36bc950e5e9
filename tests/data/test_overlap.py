import io
import json
from dataclasses import replace

import numpy as np
import pytest
from helpers.pictures import write_pictures
from PIL import Image

from stml_semi.data.benchmarks.class_names import plain_car, plain_name
from stml_semi.data.claims import claim
from stml_semi.data.image_table import ImageTable
from stml_semi.data.overlap import MAX_DISTANCE, ExcludedImage, find_by_class, find_by_picture, perceptual_hash, without
from stml_semi.data.run_tables import Tables
from stml_semi.data.sources.open_source import open_source
from stml_semi.run_folder.recipe import build_config
from stml_semi.training.resolve import resolve
from stml_semi.training.run import run


@pytest.mark.parametrize(
    ("cub", "nabirds"),
    [
        ("001.Black_footed_Albatross", "0295 Black-footed Albatross"),
        ("101.White_Pelican", "0300 American White Pelican"),
        ("150.Sage_Thrasher", "0817 Sage Thrasher"),
        ("111.Loggerhead_Shrike", "0741 Loggerhead Shrike (Adult)"),
        ("117.Clay_colored_Sparrow", "1010 Clay-colored Sparrow"),
        ("023.Brandt_Cormorant", "0301 Brandt's Cormorant"),
        ("124.Le_Conte_Sparrow", "0302 LeConte's Sparrow"),
        ("141.Artic_Tern", "0303 Arctic Tern (Breeding)"),
        ("112.Great_Grey_Shrike", "0742 Northern Shrike (Adult )"),
        ("168.Kentucky_Warbler", "kentucky warbler"),
    ],
)
def test_names_of_birds(cub, nabirds):
    assert plain_name(cub) == plain_name(nabirds) != ""


def test_numbers_are_no_names():
    assert plain_name("0017") == plain_name("78/1") == plain_name("3") == ""
    assert plain_name("Tree Sparrow") != plain_name("Sage Sparrow")
    assert plain_name("Buteo buteo") == "buteo buteo"


def test_names_of_cars():
    assert plain_car("012 Audi TTS Coupe 2012") == plain_car("78/2 Audi Audi TTS coupe") == "audi tts"
    assert plain_car("160 Mercedes-Benz C-Class Sedan 2012") == plain_car("77/9 Benz Benz C Class") != ""
    assert plain_car("030 BMW 3 Series Wagon 2012") == plain_car("81/3 BWM BWM 3 Series")
    assert plain_car("030 BMW 3 Series Wagon 2012") != plain_car("031 BMW 6 Series Convertible 2007")
    assert plain_car("099") == ""


def photo(seed: int, size: tuple[int, int] = (250, 188)) -> Image.Image:
    rng = np.random.default_rng(seed)
    coarse, fine = (
        np.asarray(
            Image.fromarray(rng.integers(0, 255, (h, w, 3), dtype=np.uint8)).resize(size, Image.Resampling.BICUBIC)
        )
        for h, w in ((6, 8), (40, 50))
    )
    return Image.fromarray((coarse * 0.7 + fine * 0.3).astype(np.uint8))


def distance(a: Image.Image, b: Image.Image) -> int:
    return int(np.unpackbits(perceptual_hash(a) ^ perceptual_hash(b)).sum())


def test_copies_are_near_and_other_pictures_are_far():
    for seed in range(20):
        original, buffer = photo(seed), io.BytesIO()
        original.resize((150, 113), Image.Resampling.BILINEAR).save(buffer, "JPEG", quality=60)
        assert distance(original, Image.open(buffer)) <= MAX_DISTANCE
        assert distance(original, original.point(lambda value: int(value * 0.8 + 20))) <= MAX_DISTANCE
        assert distance(original, photo(seed + 100)) > 3 * MAX_DISTANCE


@pytest.fixture
def tables(tmp_path) -> tuple[ImageTable, ImageTable]:
    """Pool: 0, 1 are of a test class; 2 is a test file, 3 a copy of one, 4 is another image, 5 is none."""
    pool, test = tmp_path / "pool", tmp_path / "test"
    for folder in (pool / "Sage Thrasher", pool / "things", test / "150.Sage_Thrasher", test / "151.Robin"):
        folder.mkdir(parents=True)
    for i in range(2):
        photo(i).save(pool / "Sage Thrasher" / f"{i}.jpg")
        photo(i + 10).save(test / "150.Sage_Thrasher" / f"{i}.jpg")
        photo(i + 20).save(test / "151.Robin" / f"{i}.jpg")
    (pool / "things" / "2.jpg").write_bytes((test / "151.Robin" / "0.jpg").read_bytes())
    photo(21).resize((125, 94)).save(pool / "things" / "3.png")
    photo(30).save(pool / "things" / "4.jpg")
    (pool / "things" / "5.jpg").touch()
    (test / "151.Robin" / "9.jpg").touch()
    return (
        open_source(str(pool), flag="--unlabeled", labels="ignored"),
        open_source(str(test), flag="--eval", labels="required"),
    )


@pytest.mark.parametrize("num_workers", [0, 2])
def test_what_is_dropped_and_why(tables, num_workers):
    pool, test = tables
    by_class = find_by_class(pool, test, image_column=None, data_root=None)
    assert [(one.row, one.test_class) for one in by_class] == [(0, "150.Sage_Thrasher"), (1, "150.Sage_Thrasher")]
    done = []
    near = find_by_picture(pool, test, np.arange(2, 6), num_workers=num_workers, progress=done.append)
    assert sum(done) == 4 + 5
    assert [one.row for one in near] == [2, 3]  # Two empty files are no duplicates.
    assert near[0].reason == f"looks like {test.describe(2)} (0 of 256 bits differ)"
    assert near[1].reason.startswith(f"looks like {test.describe(3)} (")
    left = without(pool, [*by_class, *near])
    assert [left.describe(row)[-5:] for row in range(len(left))] == ["4.jpg", "5.jpg"]


def test_what_was_dropped_must_be_there_still(tables):
    pool, test = tables
    dropped = find_by_class(pool, test, image_column=None, data_root=None)
    with pytest.raises(ValueError, match="other images than when overlap.jsonl was written"):
        without(pool, [dropped[0]._replace(row=4)])


def test_classes_that_are_known_stay_with_their_images(tables):
    pool = replace(tables[0], labels=np.arange(len(tables[0])))
    dropped = [ExcludedImage(row, pool.describe(row), "", "", "") for row in (0, 2)]
    left = without(pool, dropped).labels
    assert left is not None
    assert left.tolist() == [1, *range(3, len(pool))]


def test_needs_something_to_overlap(tmp_path):
    with pytest.raises(ValueError, match="--exclude-overlap drops what is evaluated on, and nothing is"):
        build_config({"unlabeled": "x", "exclude_overlap": True})


@pytest.mark.slow
def test_a_run_drops_lists_resumes_and_says_so(tables, tmp_path, monkeypatch, capsys):
    for seed in range(40, 50):
        photo(seed, (32, 32)).save(tmp_path / "pool" / "things" / f"{seed}.png")
    for name in "abcd":
        write_pictures(tmp_path / "labeled" / name, 3, seed=ord(name))
    (tmp_path / "pool" / "things" / "5.jpg").unlink()
    (tmp_path / "test" / "151.Robin" / "9.jpg").unlink()
    monkeypatch.chdir(tmp_path)
    values = {"labeled": "labeled", "unlabeled": "pool", "eval": "test", "exclude_overlap": True, "max_steps": 1}
    values |= {"labeled_batch_size": 4, "images_per_class": 2, "unlabeled_batch_size": 10, "label_warmup_steps": 0}
    values |= {"backbone": "tiny-resnet", "num_workers": 0, "log_every": 1, "output_dir": "run"}
    result = run(resolve("semi", values))
    lines = [json.loads(line) for line in (tmp_path / "run/overlap.jsonl").read_text().splitlines()]
    assert [line["image"][-5:] for line in lines] == ["0.jpg", "1.jpg", "2.jpg", "3.png"]
    assert "4 of 15 unlabeled images are left out: 1 that are evaluated on, 2 of 1 classes" in capsys.readouterr().err
    monkeypatch.setattr("stml_semi.data.run_tables.find_by_picture", None)  # A resumed run looks at the list.
    again = run(resolve("semi", values | {"resume": True, "max_steps": 2}))
    assert len(again.lines) == len(result.lines) + 2
    assert [json.loads(line) for line in (tmp_path / "run/overlap.jsonl").read_text().splitlines()] == lines


def test_the_claim_follows_what_was_dropped(tables):
    _, test = tables
    names = {"labeled": "cub:train", "unlabeled": "nabirds:all", "evaluation": "cub:test"}
    labeled, unlabeled, evaluation = (replace(test, name=name) for name in names.values())
    labeled = replace(labeled, classes=("001.A", "002.B"))
    all_of_it = Tables(labeled, unlabeled, evaluation, (1,))
    assert "NABirds holds 75 of CUB's 100 test species" in claim(all_of_it)
    dropped = (ExcludedImage(0, "x", "nabirds:all", "150.Sage_Thrasher", "is of class"),)
    said = claim(all_of_it._replace(excluded=dropped, classes_compared=True))
    assert said == "no label of its classes was used; 1 of its classes were taken out of nabirds by name"
    assert "of which none could be told by name" in claim(all_of_it._replace(excluded=(), classes_compared=True))
