"""What a threshold is worth on classes that it was not measured on: `python benchmarks/thresholds.py MODEL FROM TO`."""

import argparse

import torch

from stml_semi.data.sources.open_source import open_source
from stml_semi.metrics import OpenSetScores, precision_thresholds
from stml_semi.models.evaluation import embed_table, score_open_set
from stml_semi.runtime.progress import Counter
from stml_semi.sharing.load import Retriever, load

WANTED = (0.5, 0.8, 0.9, 0.95, 0.98, 0.99)


def compare(model: Retriever, data: str) -> OpenSetScores:
    """What each image of a labeled source finds among the others."""
    table = open_source(data, flag="data", labels="required")
    with Counter("embed", len(table), enabled=True) as counter:
        embedded = embed_table(
            table,
            model,
            model.processor,
            batch_size=256,
            num_workers=0,
            device=torch.device("cpu"),
            progress=counter.advance,
        )
    return score_open_set(table, embedded)


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("model", help="what `load` opens")
    parser.add_argument("measured", help="labeled images that the thresholds come from")
    parser.add_argument("applied", help="labeled images of other classes that they are applied to")
    options = parser.parse_args()
    model = load(options.model)
    found, scores = precision_thresholds(compare(model, options.measured), WANTED), compare(model, options.applied)
    matched = scores.same > -2
    same, other = scores.same[matched], scores.other[matched]
    print("| wanted | cosine from | matches found there | right among answers here | matches found here |")
    print("|---|---|---|---|---|")
    for wanted, cosine, answered in found:
        right = int(((same > other) & (same >= cosine)).sum())
        given = int((torch.maximum(same, other) >= cosine).sum() + (other >= cosine).sum())
        precision = f"{right / given:.1%}" if given else "no answer"
        print(f"| {wanted:.0%} | {cosine:.3f} | {answered:.1%} | {precision} | {right / len(same):.1%} |")


if __name__ == "__main__":
    main()
