"""Names from data are shown on a terminal, never obeyed by it."""

import json

from helpers.command_line import call
from helpers.pictures import write_pictures

from stml_semi.cli.printing import print_answers, print_scores, print_worst_classes
from stml_semi.runtime.progress import Counter
from stml_semi.runtime.terminal_text import visible
from stml_semi.search.query import Answer, Hit

EVIL = "a\x1b[2J\rb\u202egpj\x07\x9b1m"
SHOWN = r"a\x1b[2J\rb\u202egpj\x07\x9b1m"
OBEYED = {"\x1b", "\r", "\u202e", "\x07", "\x9b"}


def test_what_a_terminal_obeys_is_spelled_out():
    assert visible(EVIL) == SHOWN
    assert visible("a\nb\tc\u2028d\udcff") == r"a\nb\tc\u2028d\udcff"
    assert visible("für 漢字 🙂 [red]x[/red] :train:") == "für 漢字 🙂 [red]x[/red] :train:"


def test_tables_and_progress(capsys):
    print_scores(
        EVIL,
        {
            "m": {
                "recall@1": 1.0,
                "r_precision": 1.0,
                "map@r": 1.0,
                "num_unreadable": 1,
                "unreadable": [{"image": EVIL, "reason": EVIL}],
            }
        },
    )
    print_worst_classes([{"class": EVIL, "num_queries": 1, "recall@1": 0.0}])
    print_answers([Answer(EVIL, None, [Hit(0, EVIL, 1.0)])])
    with Counter("embed", 2, enabled=True) as counter:
        counter.note(f"warning: {EVIL}")
        counter.terms = [EVIL]
        counter.advance(2)
    out, err = capsys.readouterr()
    for text, count in ((out, 6), (err, 2)):
        assert text.count(SHOWN) == count
        assert not set(text) & OBEYED


def test_commands_and_errors(monkeypatch, capsys, tmp_path):
    write_pictures(tmp_path / EVIL, 2)
    (tmp_path / EVIL / "bad.png").write_bytes(b"no image")
    code, out, _ = call(monkeypatch, capsys, "data", "info", tmp_path / EVIL)
    assert code == 0
    assert f"{SHOWN}/bad.png" in out
    code, _, err = call(monkeypatch, capsys, "search", "--index", tmp_path / EVIL, "a.png")
    assert code == 2
    assert SHOWN in err
    assert not set(out + err) & OBEYED


def test_json_keeps_names_as_they_are(monkeypatch, capsys, tmp_path):
    write_pictures(tmp_path / EVIL, 2)
    write_pictures(tmp_path / EVIL, 2)
    index = tmp_path / "index"
    flags = ["--model", "tiny-resnet", "--data", tmp_path / EVIL, "--output", index, "--num-workers", "0"]
    call(monkeypatch, capsys, "embed", *flags)
    _, out, _ = call(monkeypatch, capsys, "dedup", "--index", index, "--threshold", "0.01", "--json")
    assert [image.split("/")[-2] for image in json.loads(out)[0]["images"]] == [EVIL, EVIL]
    _, out, _ = call(monkeypatch, capsys, "dedup", "--index", index, "--threshold", "0.01")
    assert out.count(SHOWN) == 2
    assert not set(out) & OBEYED
