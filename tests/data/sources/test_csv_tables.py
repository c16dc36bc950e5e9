"""Csv files as spreadsheets, pandas and scripts write them."""

import codecs
from pathlib import Path
from typing import Any

import pytest
from helpers.source_helpers import level, open_labeled, open_unlabeled, refusal, save, write_csv

ROWS = [("img/0.png", "wren"), ("img/1.png", "robin"), ("img/2.png", "wren")]
LINES = "".join(f"{path},{label}\n" for path, label in ROWS)


@pytest.fixture(autouse=True)
def _images(tmp_path):
    for i in range(len(ROWS)):
        save(tmp_path / f"img/{i}.png", i)


def check(path: Path, **options: Any) -> None:
    """The three rows, and no other class."""
    table = open_labeled(path, **options)
    assert table.labels is not None
    assert [table.classes[i] for i in table.labels] == [label for _, label in ROWS]
    assert [level(table, row) for row in range(len(table))] == [0, 1, 2]
    assert len(open_unlabeled(path)) == len(ROWS)


@pytest.mark.parametrize("first", [True, False])
def test_lines_inside_of_quotes_are_no_rows(tmp_path, first):
    """In a file that is longer than what a parser takes at once."""
    caption = "bird number {}\nimg/0.png,k9,by me\nimg/0.png,k9,by you\n"
    rows = [(f"img/{i % 3}.png", f"k{i % 3}", caption.format(i)) for i in range(30_000)]
    named = [("image", "label", "caption"), *rows]
    path = write_csv(tmp_path / "big.csv", *[(row[2], row[0], row[1]) if first else row for row in named])
    assert path.stat().st_size > 2**21
    table = open_labeled(path)
    assert len(table) == len(rows)
    assert table.classes == ("k0", "k1", "k2")
    assert table.labels is not None
    assert table.labels.tolist() == [0, 1, 2] * 10_000
    assert len(open_unlabeled(path)) == len(rows)


@pytest.mark.parametrize("delimiter", ";\t|")
@pytest.mark.parametrize("suffix", ["csv", "tsv"])
def test_what_separates_is_seen(tmp_path, delimiter, suffix):
    check(write_csv(tmp_path / f"l.{suffix}", ("image", "label"), *ROWS, delimiter=delimiter))
    noted = [(*row, "brown, small") for row in ROWS]
    check(write_csv(tmp_path / f"n.{suffix}", ("image", "label", "note, long"), *noted, delimiter=delimiter))


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_unicode_text_of_spreadsheets(tmp_path, encoding):
    text = "image,label\n" + LINES.replace("wren", "Zaunkönig")
    (tmp_path / "l.csv").write_text(text, encoding=encoding)
    assert open_labeled(tmp_path / "l.csv").classes == ("Zaunkönig", "robin")
    (tmp_path / "l.csv").write_bytes(codecs.BOM_UTF16_BE + text.encode("utf-16-be"))
    assert open_labeled(tmp_path / "l.csv").classes == ("Zaunkönig", "robin")


@pytest.mark.parametrize(
    "text",
    [
        "image, label\n" + LINES.replace(",", ", "),
        "image, label\n" + "".join(f'{path}, "{label}"\n' for path, label in ROWS),
        "image ,label \n" + LINES.replace(",", " , "),
        "image,label\n" + LINES.replace(",", ", ").replace("\n", " \n"),
        "image,label,\n" + LINES.replace("\n", ",\n"),
        "image,label\n" + LINES.replace("\n", ",,\n"),
        "\nimage,label\n\n" + LINES + "\n\n,\n",
        "image,label\r" + LINES.replace("\n", "\r"),
        "image,label\r\n" + LINES.replace("\n", "\r\n").rstrip(),
        "image,label\n" + LINES.replace("/", "\\"),
        "# made by tool\nimage,label\n" + LINES,
        "# made by tool, in 2024\n# version 2\nimage,label\n" + LINES,
        "#image,label\n" + LINES,
        "# image,label\n" + LINES,
        "#,image,label\n" + "".join(f"{i},{','.join(row)}\n" for i, row in enumerate(ROWS)),
        "sep=;\nimage;label\n" + LINES.replace(",", ";"),
        '"image","la\nbel","label"\n' + LINES.replace(",", ",x,"),
    ],
)
def test_what_tools_write(tmp_path, text):
    (tmp_path / "l.csv").write_bytes(text.encode())
    check(tmp_path / "l.csv")


@pytest.mark.parametrize(
    ("rows", "problem"),
    [
        (LINES + "img/0.png\n", "line 5 has 1 value where the first line names 2 columns (img/0.png)"),
        (LINES + "img/0.png,wren,x\n", "line 5 has 3 values where the first line names 2 columns (img/0.png,wren,x)"),
        ('img/0.png,"a \\"wren\\""\n', "line 2 has text after a closing quote; inside of quotes a quote is written tw"),
        (LINES + 'img/0.png,"wren\n', "line 5 has an open quote at the end of the file; close it where it belongs"),
        (LINES + f'img/0.png,"{"x" * 200_000}"\n', "line 5 has a value of more than 131,072 characters"),
    ],
)
def test_damaged_rows_are_named(tmp_path, rows, problem):
    (tmp_path / "l.csv").write_text("image,label\n" + rows)
    assert f"cannot be read, check the file: {problem}" in refusal(open_labeled, tmp_path / "l.csv")


def test_other_encodings_are_refused_with_the_line(tmp_path):
    (tmp_path / "l.csv").write_bytes(("image,label\n" + LINES.replace("robin", "Möwe")).encode("cp1252"))
    text = refusal(open_labeled, tmp_path / "l.csv")
    assert "line 3 is not UTF-8 (img/1.png,M\ufffdwe); save it as UTF-8" in text


def test_names_of_files_are_taken_as_they_are(tmp_path):
    save(tmp_path / " a\\b.png", 7)
    save(tmp_path / "a/b.png", 8)
    rows = (("wren", " a\\b.png"), ("robin", "img/1.png"))
    table = open_labeled(write_csv(tmp_path / "l.csv", ("label", "image"), *rows))
    assert level(table, 0) == 7


def test_a_column_that_is_there_twice_is_refused_if_it_is_read(tmp_path):
    (tmp_path / "l.csv").write_text("image,label,label,note,note\n" + LINES.replace("\n", ",x,y,z\n"))
    with pytest.raises(ValueError, match=r"l\.csv: has 2 columns called 'label'; rename all but one"):
        open_labeled(tmp_path / "l.csv")
    assert len(open_unlabeled(tmp_path / "l.csv")) == len(ROWS)


def test_labels_without_a_value(tmp_path):
    rows = [("img/0.png", value) for value in ("1.0", "2", " ", "nan", "1")]
    text = refusal(open_labeled, write_csv(tmp_path / "l.csv", ("image", "label"), *rows))
    assert "2 of 5 rows have no label in column 'label'" in text
    rows = [("img/0.png", value) for value in ("nan", "roti", " nan")]
    assert open_labeled(write_csv(tmp_path / "b.csv", ("image", "label"), *rows)).classes == ("nan", "roti")
