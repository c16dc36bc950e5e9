"""The normal form of names of classes."""

import math
import unicodedata

import pytest

from stml_semi.data.labels import class_name


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, 1.0),
        ("1", 1.0),
        ("1.0", "1"),
        ("-3.0", -3),
        ("k0", " k0\t"),
        ("k0", "k0\u00a0"),
        (unicodedata.normalize("NFC", "Zaunkönig"), unicodedata.normalize("NFD", "Zaunkönig")),
    ],
)
def test_one_class_written_in_two_ways(one, other):
    assert class_name(one) == class_name(other) is not None


@pytest.mark.parametrize("names", [("007", "7"), ("Robin", "robin"), ("1.5", "1"), ("v1.0", "v1"), ("1.00", "1")])
def test_names_that_differ_stay_apart(names):
    assert [class_name(name) for name in names] == list(names)


@pytest.mark.parametrize("value", [None, math.nan, "", " ", "\t\n", "\u00a0"])
def test_missing_labels(value):
    assert class_name(value) is None
    assert class_name(0) == "0"
    assert class_name(False) == "False"
