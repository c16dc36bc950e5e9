"""The words of the model card."""

_CITATION = """@inproceedings{kim2022selftaught,
  title = {Self-Taught Metric Learning without Labels},
  author = {Kim, Sungyeon and Kim, Dongwon and Cho, Minsu and Kwak, Suha},
  booktitle = {Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
  year = {2022},
  note = {arXiv:2205.01903}
}"""
_ONNX = """
With ONNX (opset 18, any batch size), without PyTorch where it runs:

```python
import onnxruntime
from PIL import Image, ImageOps
from transformers import AutoImageProcessor

processor = AutoImageProcessor.from_pretrained("{place}")
session = onnxruntime.InferenceSession("embedder.onnx")  # a file of this repository
pixels = processor(images=ImageOps.exif_transpose(Image.open("a.jpg")), return_tensors="np")["pixel_values"]
embeddings = session.run(None, {{"pixel_values": pixels}})[0]
```
"""
_TRAINING = {
    "semi": "labeled images by a proxy loss and unlabeled images by self-taught relations (STML) together",
    "sup": "labeled images alone, by a proxy loss",
    "unsup": "unlabeled images alone, by self-taught relations (STML)",
}


def body(
    *,
    name: str,
    place: str,
    backbone: str,
    base_model: str | None,
    license: str | None,
    pooling: str,
    size: tuple[int, int],
    embedding_dim: int,
    weights: str,
    steps: str,
    data: list[str],
    results: str,
    command: str,
    kind: str,
    dtype: str,
    onnx: bool,
    curves: str | None,
) -> str:
    """The card below its metadata, as Markdown."""
    origin = f"[{base_model}](https://huggingface.co/{base_model})" if base_model else f"`{backbone}`"
    average = ", an exponential moving average of the trained weights" if weights == "teacher" else ""
    stored = "" if dtype == "float32" else f", stored as {dtype}: half the size, computed with in float32"
    terms = (
        f"Stated license: {license}. Terms of the images it learned from may apply as well."
        if license
        else "No license is stated: that of the base model is not known to the tool that wrote this card. Look it up "
        "before you share or sell the model, and state one with `--license`."
    )
    sources = "\n".join(data)
    picture = f"\n![Scores and losses over the steps of the training]({curves})\n" if curves else ""
    without_torch = _ONNX.format(place=place) if onnx else ""
    return f"""# {name}

This model turns a picture into a vector of {embedding_dim} numbers, so that pictures of the same kind of thing lie
close together by cosine. It is meant for image retrieval: finding images like a given one, near-duplicates, clusters
and nearest-neighbor labels.

- Backbone: {origin}, input {size[0]} x {size[1]} pixels, pooled by {pooling}, then a linear head and unit length
- Trained on {_TRAINING[kind]}
- Weights: the **{weights}**{average}, after {steps} steps{stored}

## How to use it

With [sentence-transformers](https://sbert.net):

```python
from sentence_transformers import SentenceTransformer

model = SentenceTransformer("{place}")
# Files, or PIL pictures of any mode; those have to be upright (PIL.ImageOps.exif_transpose).
embeddings = model.encode(["a.jpg", "b.jpg"])
print(model.similarity(embeddings, embeddings))
```

With transformers, the backbone alone (its features, without pooling and head):

```python
from PIL import Image, ImageOps
from transformers import AutoImageProcessor, AutoModel

processor = AutoImageProcessor.from_pretrained("{place}")
backbone = AutoModel.from_pretrained("{place}").eval()
pixels = processor(images=ImageOps.exif_transpose(Image.open("a.jpg")), return_tensors="pt")
features = backbone(**pixels).last_hidden_state
```

With stml-semi, which trained it, in its folder:

```python
from PIL import Image
from stml_semi import load

embeddings = load("{place}").encode([Image.open("a.jpg"), Image.open("b.jpg")])
```

```bash
python cli.py embed --model {place} --data path/to/images --output index
python cli.py search --model {place} --index index query.jpg
```
{without_torch}
## Data and license

{sources}

{terms}

## Results

{results}

recall@k: the share of queries with an image of their class among the k nearest. R-precision: the share of the class
among the R nearest, where R is its number of other images. MAP@R also counts how early they come.

## Training

```bash
{command}
```

All settings are in [training_config.yaml](training_config.yaml): `cli.py {kind} --recipe training_config.yaml`.
{picture}
## Limits and intended use

- The embedding is made for images like those it was trained and evaluated on. On others expect no more than the
  backbone offers, and measure before you rely on it.
- Similarity here means what the training labels and images made it mean. It is not identity: do not use it to recognize
  people, nor for decisions about them.
- A cosine is not a probability: choose thresholds on images of your own.
- Whatever bias the backbone and the training images carry, the embedding carries too.

## Citation

The method is STML (Kim et al., CVPR 2022, [arXiv:2205.01903](https://arxiv.org/abs/2205.01903)):

```bibtex
{_CITATION}
```
"""
