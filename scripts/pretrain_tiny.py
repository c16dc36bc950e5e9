"""Pretrains the embedded backbone tiny-resnet: a classifier of letters that has never seen a kanji.

    python scripts/pretrain_tiny.py

Writes config.json, model.safetensors (float16) and preprocessor_config.json, as transformers opens them.
"""

import argparse
import hashlib
import math
import time
import unicodedata
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
import torch.nn.functional as F
from build_kanji import TYPEFACES, WHITE, Typeface, characters_of, draw_glyph, find_fonts, fit_glyph, load_font
from numpy.typing import NDArray
from torch import Tensor, nn

EMBEDDED = Path(__file__).parents[1] / "stml_semi" / "models" / "embedded"

SIDE = 64
"""Side of a stored glyph, pixels: twice that of a training image, so that warping blurs nothing."""
INPUT_SIDE = 64
"""Side to which the image processor scales an image of 32 pixels: the stem of a ResNet divides by four at once."""
NUM_HANGUL = 0
NUM_STEPS = 500
MIN_TYPEFACES = 8
"""A character that fewer typefaces draw is left out."""

LETTER_TYPEFACES = (
    Typeface("Bandal.ttf", "fonts-alee"),
    Typeface("Bangwool.ttf", "fonts-alee"),
    Typeface("Eunjin.ttf", "fonts-alee"),
    Typeface("EunjinNakseo.ttf", "fonts-alee"),
    Typeface("batang.ttf", "fonts-baekmuk"),
    Typeface("dotum.ttf", "fonts-baekmuk"),
    Typeface("gulim.ttf", "fonts-baekmuk"),
    Typeface("hline.ttf", "fonts-baekmuk"),
    Typeface("DejaVuSans.ttf", "fonts-dejavu-core"),
    Typeface("DejaVuSerif-Bold.ttf", "fonts-dejavu-core"),
    Typeface("FreeMono.ttf", "fonts-freefont-ttf"),
    Typeface("FreeSans.ttf", "fonts-freefont-ttf"),
    Typeface("FreeSerifItalic.ttf", "fonts-freefont-ttf"),
    Typeface("LexiSaebomR.ttf", "fonts-lexi-saebom"),
    Typeface("NanumGothic.ttf", "fonts-nanum"),
    Typeface("NanumMyeongjo.ttf", "fonts-nanum"),
    Typeface("NanumBarunpenB.ttf", "fonts-nanum"),
    Typeface("NanumSquareRoundB.ttf", "fonts-nanum"),
    Typeface("NanumBarunGothicUltraLight.ttf", "fonts-nanum-extra"),
    Typeface("NanumBrush.ttf", "fonts-nanum-extra"),
    Typeface("NanumGothicExtraBold.ttf", "fonts-nanum-extra"),
    Typeface("NanumMyeongjoExtraBold.ttf", "fonts-nanum-extra"),
    Typeface("NanumPen.ttf", "fonts-nanum-extra"),
    Typeface("UnDinaru.ttf", "fonts-unfonts-core"),
    Typeface("UnGraphicBold.ttf", "fonts-unfonts-core"),
    Typeface("UnGungseo.ttf", "fonts-unfonts-core"),
    Typeface("UnPilgi.ttf", "fonts-unfonts-core"),
    Typeface("UnJamoNovel.ttf", "fonts-unfonts-extra"),
    Typeface("UnJamoSora.ttf", "fonts-unfonts-extra"),
    Typeface("UnPen.ttf", "fonts-unfonts-extra"),
    Typeface("UnPenheulim.ttf", "fonts-unfonts-extra"),
    Typeface("UnPilgia.ttf", "fonts-unfonts-extra"),
    Typeface("UnShinmun.ttf", "fonts-unfonts-extra"),
    Typeface("UnTaza.ttf", "fonts-unfonts-extra"),
    Typeface("UnVada.ttf", "fonts-unfonts-extra"),
    Typeface("UnYetgul.ttf", "fonts-unfonts-extra"),
    Typeface("BMDOHYEON_ttf.ttf", "fonts-woowa-bm"),
    Typeface("BMEULJIROTTF.ttf", "fonts-woowa-bm"),
    Typeface("BMEuljiro10yearslater.ttf", "fonts-woowa-bm"),
    Typeface("BMEuljirooraeorae.ttf", "fonts-woowa-bm"),
    Typeface("BMHANNAAir_ttf.ttf", "fonts-woowa-bm"),
    Typeface("BMHANNAPro.ttf", "fonts-woowa-bm"),
    Typeface("BMHANNA_11yrs_ttf.ttf", "fonts-woowa-bm"),
    Typeface("BMJUA_ttf.ttf", "fonts-woowa-bm"),
    Typeface("BMKIRANGHAERANG-TTF.ttf", "fonts-woowa-bm"),
    Typeface("BMYEONSUNG_ttf.ttf", "fonts-woowa-bm"),
)

# Letters that differ from each other once size and position are gone: no second O, no Greek A.
LATIN = "ABDEFGHJKLMNPQRTUVWXYZabdefghimnqrty"
GREEK = "ΓΔΘΛΞΠΣΦΨΩαβδεζηθλμξπστφψω"
CYRILLIC = "БДЖИЙЛЦЧШЩЪЫЮЯбёф"


class Glyphs(NamedTuple):
    """Every letter in every typeface that has it."""

    ink: NDArray[np.uint8]
    """(N, SIDE, SIDE), 255 = ink."""
    labels: NDArray[np.int64]
    """(N,) class of each glyph."""
    num_classes: int


def letters(num_hangul: int) -> list[str]:
    """The classes: Latin, Greek, Cyrillic, kana, and Hangul syllables in the order of a hash."""
    kana = [chr(code) for code in (*range(0x3041, 0x3097), *range(0x30A1, 0x30FB))]
    kana = [character for character in kana if "SMALL" not in unicodedata.name(character)]
    cells = (bytes((row, cell)) for row in range(0xB0, 0xC9) for cell in range(0xA1, 0xFF))
    hangul = sorted((cell.decode("euc_kr") for cell in cells), key=lambda c: hashlib.sha256(c.encode()).digest())
    chosen = [*LATIN, *GREEK, *CYRILLIC, *kana, *hangul[:num_hangul]]
    for character in chosen:
        script = unicodedata.name(character).split()[0]
        assert script in {"LATIN", "GREEK", "CYRILLIC", "HIRAGANA", "KATAKANA", "HANGUL"}, f"{character} is {script}"
    return chosen


def draw_letters(characters: Sequence[str], fonts: Sequence[Path]) -> Glyphs:
    """Draws what the fonts hold; placeholders, which a font shares between characters, are left out."""
    ink: dict[str, list[NDArray[np.uint8]]] = {character: [] for character in characters}
    for path in fonts:
        font, held = load_font(path), characters_of(path)
        seen: dict[bytes, list[tuple[str, NDArray[np.uint8]]]] = {}
        for character in characters:
            glyph = draw_glyph(font, character) if character in held else None
            if glyph and min(glyph.size) > 1:
                square = WHITE - np.asarray(fit_glyph(glyph, SIDE, margin=SIDE // 16))
                seen.setdefault(hashlib.sha256(square.tobytes()).digest(), []).append((character, square))
        for owners in seen.values():
            if len(owners) == 1:
                ink[owners[0][0]].append(owners[0][1])
    kept = [squares for squares in ink.values() if len(squares) >= MIN_TYPEFACES]
    labels = np.repeat(np.arange(len(kept)), [len(squares) for squares in kept])
    return Glyphs(np.stack([square for squares in kept for square in squares]), labels, len(kept))


def augment(ink: Tensor, generator: torch.Generator) -> Tensor:
    """Images as the kanji files hold them, from glyphs that were warped, thickened or thinned, faded and soiled.

    Args:
        ink: (B, 1, SIDE, SIDE) in 0..1, 1 = ink.

    Returns:
        (B, 1, SIDE / 2, SIDE / 2) in 0..1, dark on light.
    """

    def uniform(low: float, high: float, *shape: int) -> Tensor:
        return torch.rand(len(ink), *shape, generator=generator) * (high - low) + low

    angle, shear, shift = uniform(-0.12, 0.12), uniform(-0.2, 0.2), uniform(-0.08, 0.08, 2)
    width, height = uniform(-0.18, 0.18).exp(), uniform(-0.18, 0.18).exp()
    across = torch.stack([width * angle.cos(), shear - height * angle.sin(), shift[:, 0]], dim=1)
    down = torch.stack([width * angle.sin(), height * angle.cos(), shift[:, 1]], dim=1)
    affine = torch.stack([across, down], dim=1)
    grid = F.affine_grid(affine, list(ink.shape), align_corners=False)
    bumps = torch.randn(len(ink), 2, 5, 5, generator=generator) * uniform(0.0, 0.06, 1, 1, 1)
    grid = grid + F.interpolate(bumps, size=ink.shape[-2:], mode="bicubic", align_corners=False).permute(0, 2, 3, 1)
    ink = F.grid_sample(ink, grid, align_corners=False)

    change = uniform(-1.0, 1.0, 1, 1, 1)
    thick, thin = F.max_pool2d(ink, 3, 1, 1), -F.max_pool2d(-ink, 3, 1, 1)
    ink = torch.where(change > 0, torch.lerp(ink, thick, change), torch.lerp(ink, thin, 0.7 * -change))
    ink = F.avg_pool2d(ink, 2) * uniform(0.7, 1.0, 1, 1, 1)
    noise = torch.randn(ink.shape, generator=generator) * uniform(0.0, 0.1, 1, 1, 1)
    return (1 - ink + noise).clamp(0, 1)


def batches(glyphs: Glyphs, size: int, generator: torch.Generator) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless (images (B, 1, 32, 32), labels (B,)); every glyph once before any comes again."""
    labels = torch.from_numpy(glyphs.labels)
    while True:
        for rows in torch.randperm(len(labels), generator=generator).split(size):
            ink = torch.from_numpy(glyphs.ink[rows.numpy()]).unsqueeze(1).float() / WHITE
            yield augment(ink, generator), labels[rows]


def to_input(pictures: Tensor) -> Tensor:
    """(B, 1, h, w) in 0..1 -> (B, 3, INPUT_SIDE, INPUT_SIDE) in -1..1: the image processor, on tensors."""
    pictures = F.interpolate(pictures, size=(INPUT_SIDE, INPUT_SIDE), mode="bilinear", align_corners=False)
    return ((pictures - 0.5) / 0.5).expand(-1, 3, -1, -1)


def build() -> Any:
    """A ResNet with fresh weights: transformers.ResNetModel, under two megabytes in float16."""
    from transformers import ResNetConfig, ResNetModel

    return ResNetModel(
        ResNetConfig(embedding_size=32, hidden_sizes=[32, 64, 128, 208], depths=[1, 1, 1, 1], layer_type="basic")
    )


def features(model: Any, inputs: Tensor) -> Tensor:
    """(B, 3, h, w) -> (B, 208): mean + max of the last feature map."""
    hidden = model(pixel_values=inputs).last_hidden_state.flatten(2)
    return hidden.mean(2) + hidden.amax(2)


def pretrain(
    glyphs: Glyphs, *, num_steps: int, batch_size: int = 128, learning_rate: float = 2e-3, seed: int = 0
) -> Any:
    """Trains a backbone to tell letters apart, by cosine, since retrieval will compare by cosine too."""
    torch.manual_seed(seed)
    generator = torch.Generator().manual_seed(seed)
    model = build().to(memory_format=torch.channels_last).train()
    classes = nn.Parameter(torch.randn(glyphs.num_classes, model.config.hidden_sizes[-1]) * 0.05)
    parameters = [*model.parameters(), classes]
    optimizer = torch.optim.AdamW(parameters, lr=learning_rate, weight_decay=0.05)
    schedule = torch.optim.lr_scheduler.OneCycleLR(optimizer, learning_rate, total_steps=num_steps, pct_start=0.1)
    start, mean_loss = time.perf_counter(), math.log(glyphs.num_classes)
    for step, (pictures, labels) in zip(range(1, num_steps + 1), batches(glyphs, batch_size, generator), strict=False):
        inputs = to_input(pictures).contiguous(memory_format=torch.channels_last)
        cosine = F.normalize(features(model, inputs), dim=1) @ F.normalize(classes, dim=1).T
        loss = F.cross_entropy(16 * cosine, labels)
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        schedule.step()
        mean_loss += 0.02 * (loss.item() - mean_loss)
        if step % 100 == 0:
            print(f"step {step}: loss {mean_loss:.3f}, {time.perf_counter() - start:.0f} s", flush=True)
    return model.eval()


@torch.no_grad()
def validate(model: Any, table: Path) -> str:
    """Leave-one-out retrieval among the images of a file from `build_kanji.py --validation`."""
    from datasets import Dataset

    rows = Dataset.from_parquet(str(table))
    labels = torch.tensor(rows["label"])
    pictures = torch.from_numpy(np.stack([np.asarray(image.convert("L")) for image in rows["image"]])) / WHITE
    inputs = to_input(pictures.unsqueeze(1))
    embeddings = F.normalize(torch.cat([features(model, part) for part in inputs.split(256)]), dim=1)
    similarity = (embeddings @ embeddings.T).fill_diagonal_(-1)
    relevant = int((labels == labels[0]).sum()) - 1
    hits = (labels[similarity.topk(relevant).indices] == labels[:, None]).float()
    precision = hits.cumsum(1) / torch.arange(1, relevant + 1)
    return f"recall@1 {hits[:, 0].mean():.4f}, MAP@R {(precision * hits).mean(1).mean():.4f}"


def save(model: Any, folder: Path) -> None:
    """Weights in float16 and the image processor: scale to a square, then to -1..1."""
    from transformers import ViTImageProcessor

    model.half().save_pretrained(folder)
    half, size = [0.5, 0.5, 0.5], {"height": INPUT_SIDE, "width": INPUT_SIDE}
    processor = ViTImageProcessor(size=size, resample=2, image_mean=half, image_std=half)
    processor.save_pretrained(folder)
    for path in folder.iterdir():
        # transformers writes weights that only their owner may read: packages and other users need them too.
        path.chmod(0o644)
    print(f"{folder}: {(folder / 'model.safetensors').stat().st_size / 1e6:.2f} MB")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--output", type=Path, default=EMBEDDED / "tiny-resnet", help="folder to write")
    parser.add_argument("--validation", type=Path, help="file from build_kanji.py --validation: scored at the end")
    parser.add_argument(
        "--hangul",
        type=int,
        default=NUM_HANGUL,
        metavar="N",
        help="add Hangul syllables to the classes: a stronger backbone",
    )
    parser.add_argument("--steps", type=int, default=NUM_STEPS, help="training steps")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    try:
        fonts = find_fonts((*TYPEFACES, *LETTER_TYPEFACES))
    except ValueError as error:
        parser.error(str(error))
    # More threads change the order of sums, and with it the weights.
    torch.set_num_threads(1)
    glyphs = draw_letters(letters(options.hangul), fonts)
    print(f"{len(glyphs.ink)} glyphs of {glyphs.num_classes} characters in {len(fonts)} typefaces")
    model = pretrain(glyphs, num_steps=options.steps, seed=options.seed)
    if options.validation:
        print(validate(model, options.validation))
    save(model, options.output)


if __name__ == "__main__":
    main()
