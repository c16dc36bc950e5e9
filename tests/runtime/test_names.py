"""Class names in scripts that a font may lack."""

import pytest

from stml_semi.runtime.names import with_code_points


@pytest.mark.parametrize(
    ("name", "shown"),
    [
        ("robin", "robin"),
        ("Éclair, ½ – 3 €", "Éclair, ½ – 3 €"),
        ("Чайка λ Việt", "Чайка λ Việt"),
        ("U+4E9C 亜", "U+4E9C 亜"),
        ("亜", "亜 (U+4E9C)"),
        ("owl 🦉", "owl 🦉 (U+1F989)"),
        ("シマエナガ", "シマエナガ (U+30B7 U+30DE U+30A8 U+30CA ...)"),
        ("", ""),
    ],
)
def test_code_points_stand_beside_what_a_font_may_lack(name, shown):
    assert with_code_points(name) == shown
