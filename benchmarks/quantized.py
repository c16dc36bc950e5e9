"""What smaller numbers cost: `python benchmarks/quantized.py MODEL DATA`.

Embeddings of labeled images, whole and their leading dimensions, in float32, in int8 and as bits, as
`sentence_transformers.util.quantize_embeddings` makes them; ranges of int8 are those of the images themselves. All are
compared by cosine, of bits the same order as Hamming distance.
"""

import argparse
from typing import Any

import numpy as np
import torch
from sentence_transformers.util import quantize_embeddings
from torch import Tensor

from stml_semi.data.sources.open_source import open_source
from stml_semi.metrics import retrieval_metrics
from stml_semi.models.evaluation import embed_table
from stml_semi.sharing.load import load


def quantized(embeddings: Tensor, precision: str) -> Tensor:
    """(N, d) as numbers to compare by cosine."""
    if precision == "float32":
        return embeddings
    made: Any = quantize_embeddings(embeddings.numpy(), precision=precision)  # pyright: ignore[reportArgumentType]
    if precision == "ubinary":
        made = 2.0 * np.unpackbits(made, axis=1) - 1
    return torch.from_numpy(made.astype(np.float32))


def main() -> None:
    """Prints a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("model", help="what `load` opens")
    parser.add_argument("data", help="labeled images")
    options = parser.parse_args()
    retriever, table = load(options.model), open_source(options.data, flag="data", labels="required")
    found = embed_table(table, retriever, retriever.processor, batch_size=256)
    assert table.labels is not None
    readable = torch.from_numpy(found.readable)
    embeddings, labels = found.embeddings[readable].cpu(), torch.from_numpy(table.labels)[readable]
    width = embeddings.shape[1]
    print("| dimensions | numbers | bytes per image | recall@1 | MAP@R |")
    print("|---|---|---|---|---|")
    for size in (size for size in (width, 256, 128, 64) if size <= width):
        kept = torch.nn.functional.normalize(embeddings[:, :size], dim=1)
        for precision, count in (("float32", 4 * size), ("int8", size), ("ubinary", size // 8)):
            scores = retrieval_metrics(quantized(kept, precision), labels, recall_at=(1,))
            recall, precise = 100 * scores["recall@1"], 100 * scores["map@r"]
            name = "bits" if precision == "ubinary" else precision
            print(f"| {size} | {name} | {count:,} | {recall:.1f} | {precise:.1f} |", flush=True)


if __name__ == "__main__":
    main()
