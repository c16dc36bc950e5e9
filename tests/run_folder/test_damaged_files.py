"""What a run says of itself may be damaged like any file."""

import pytest

from stml_semi.run_folder.folder import RunFolder
from stml_semi.runtime.errors import BadInput

DAMAGED = ["", "{", "[]", '{"sessions": [1]}', '{"sessions": 3}', '{"claim": 5}', '{"claim": "\\']


@pytest.mark.parametrize("content", DAMAGED)
def test_a_damaged_run_json_is_one_line(tmp_path, content):
    (tmp_path / "run.json").write_text(content)
    folder = RunFolder(tmp_path)
    for look in (lambda: folder.claim, folder.sessions, lambda: folder.backbone_commit):
        with pytest.raises(BadInput, match=r"run.json: is damaged.*; bring it back, or delete it"):
            look()
    (tmp_path / "run.json").unlink()
    assert folder.claim == ""


@pytest.mark.parametrize("content", ["", '["a"', '{"a": 1}'])
def test_damaged_lists_of_classes_are_one_line(tmp_path, content):
    (tmp_path / "test_classes.json").write_text(content)
    with pytest.raises(BadInput, match=r"test_classes.json: is damaged.*; bring the file back"):
        RunFolder(tmp_path).check_classes({"test": ["a"]})
