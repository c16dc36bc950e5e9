"""The arms of the study: what each runs. Names in braces are files that `sources` makes."""

# What the kanji get by default (data/benchmarks.py and TrainConfig) is not repeated here.
SEMI = "semi --labeled kanji --unlabeled kanji-more"
PUBLISHED = "--relations batch --sigma 3"
ARMS: dict[str, str] = {
    "sup": "sup --labeled kanji --max-steps 1000",
    "sup, 500 steps": "sup --labeled kanji --max-steps 500",
    "sup, 1,500 steps": "sup --labeled kanji --max-steps 1500",
    "null control: labeled images, labels hidden": "semi --labeled kanji --unlabeled kanji:train --max-steps 1000",
    # So weak an unlabeled term leaves the labels alone with the network: their learning rate suits it.
    "semi as published: weight 1": f"{SEMI} {PUBLISHED} --balance fixed --learning-rate 1e-4 --max-steps 1000",
    "semi, balanced": f"{SEMI} {PUBLISHED} --max-steps 1000",
    "semi, balanced, sigma calibrated": f"{SEMI} --relations batch --max-steps 1000",
    "semi, 500 steps": f"{SEMI} --max-steps 500",
    "semi": f"{SEMI} --max-steps 1000",
    "semi, 1,500 steps": f"{SEMI} --max-steps 1500",
    "semi, 2,000 steps": f"{SEMI} --max-steps 2000",
    "semi, labeled images in the pool too": f"{SEMI},kanji:train --max-steps 1000",
    "oracle: all 500 classes labeled": "sup --labeled {oracle} --labeled-batch-size 120 --learning-rate 3e-4 "
    "--max-steps 3000",
    "unsup": "unsup --unlabeled kanji-more --max-steps 300",
    "random weights: sup": "sup --labeled kanji --backbone {random} --learning-rate 1e-3 --max-steps 500",
    "random weights: semi": f"{SEMI} --backbone {{random}} --max-steps 500",
    "labels on printed typefaces only: sup": "sup --labeled {printed} --eval {handwritten} --max-steps 500",
    "labels on printed typefaces only: semi": "semi --labeled {printed} --unlabeled kanji-more --eval {handwritten} "
    "--max-steps 500",
    "labels on printed typefaces only: sup, 1,000 steps": "sup --labeled {printed} --eval {handwritten} "
    "--max-steps 1000",
    "labels on printed typefaces only: semi, 1,500 steps": "semi --labeled {printed} --unlabeled kanji-more "
    "--eval {handwritten} --max-steps 1500",
    "half of the pool is foreign: semi": f"{SEMI},{{foreign}} --max-steps 500",
    "half of the pool is foreign: semi, relevance 0.5": f"{SEMI},{{foreign}} --relevance 0.5 --max-steps 500",
}
BUDGET = (2, 5, 10)
for _count in BUDGET:
    _few = f"--labeled {{few{_count}}} --labeled-batch-size {4 * _count} --max-steps 500"
    ARMS[f"{_count} labeled classes: sup"] = f"sup {_few} --learning-rate 1e-4"
    ARMS[f"{_count} labeled classes: semi"] = f"semi {_few} --unlabeled kanji-more --learning-rate 1e-3"
UNLABELED = (440, 880, 1760, 5280)
for _count in UNLABELED:
    ARMS[f"{_count:,} unlabeled images: semi"] = (
        f"semi --labeled kanji --unlabeled {{part{_count}}} --learning-rate 1e-3 --max-steps 1000"
    )
for _count in UNLABELED[:2]:
    ARMS[f"{_count:,} unlabeled images: semi, small neighborhoods"] = (
        ARMS[f"{_count:,} unlabeled images: semi"] + " --num-neighbors 2 --pool-neighbors 5"
    )
DIVIDED = ((60, 4), (100, 3), (20, 3), (150, 1))
for _classes, _each in DIVIDED:
    _divided, _key = (
        f"{_each} image{'s' * (_each > 1)} of {_classes} of 500 classes labeled, all others unlabeled",
        f"{_classes}x{_each}",
    )
    ARMS[f"{_divided}: sup"] = f"sup --labeled {{labels{_key}}} --learning-rate 1e-4 --max-steps 500"
    ARMS[f"{_divided}: semi"] = (
        f"semi --labeled {{labels{_key}}} --unlabeled {{others{_key}}} --learning-rate 1e-3 --max-steps 1000"
    )
