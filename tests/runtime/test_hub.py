"""The hub is asked once; where it does not answer, its libraries are switched offline and say so at once."""

import time
from pathlib import Path

import pytest
from huggingface_hub import constants

from stml_semi.data.sources.open_source import open_source
from stml_semi.models.backbone import open_backbone
from stml_semi.runtime.errors import BadInput
from stml_semi.runtime.hub import reach_hub


@pytest.fixture
def no_network(monkeypatch):
    """The program believes that it is online, and nothing answers."""
    reach_hub.cache_clear()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr("datasets.config.HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    yield
    constants.HF_HUB_OFFLINE = True
    reach_hub.cache_clear()


def test_without_a_network_the_libraries_are_offline(no_network):
    assert not reach_hub()
    assert constants.HF_HUB_OFFLINE


def test_a_name_of_the_hub_fails_in_a_moment(no_network):
    started = time.monotonic()
    with pytest.raises(BadInput, match="hub cannot be reached"):
        open_source("someone/birds", flag="--labeled", labels="required")
    with pytest.raises(BadInput, match="--backbone someone/vit"):
        open_backbone("someone/vit")
    assert time.monotonic() - started < 5  # Five attempts per file would take half a minute.


def test_a_slip_of_the_hand_is_not_looked_for_on_the_hub(monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    Path("birds").mkdir()
    monkeypatch.setattr("stml_semi.data.sources.open_source.reach_hub", lambda: pytest.fail("asked the hub"))
    for typed, meant in (("brids", "birds"), ("kanij", "kanji")):
        with pytest.raises(BadInput, match=f"no such file or folder; did you mean {meant}"):
            open_source(typed, flag="--labeled", labels="required")
