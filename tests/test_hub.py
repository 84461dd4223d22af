"""The hub where it does not answer."""

from __future__ import annotations

import logging
import time

import pytest
from huggingface_hub import constants, utils

from segtailor import hub
from segtailor.config import DataConfig
from segtailor.data import create_dataset
from segtailor.errors import SegtailorError, causes
from segtailor.models.segmenter import create_model
from segtailor.models.store import load_model

OPENED = {
    "data": lambda: create_dataset(DataConfig(name="hf", source="nobody/nothing"), "train", True),
    "hf": lambda: load_model("hf:nobody/nothing"),
    "smp": lambda: load_model("smp:nobody/nothing"),
    "timm": lambda: create_model("deeplabv3plus-mobilenetv3_large_100", 2, pretrained=True),
}


@pytest.mark.parametrize("kind", OPENED)
def test_a_hub_that_does_not_answer_is_asked_once_and_silently(kind, monkeypatch, capfd, caplog):
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    waits = []
    monkeypatch.setattr(time, "sleep", waits.append)
    with caplog.at_level(logging.WARNING), pytest.raises(SegtailorError) as caught:
        OPENED[kind]()
    assert "\n" not in str(caught.value)
    if kind != "timm":
        assert "not in the local cache, and there is no connection; connect once" in str(caught.value)
    assert not waits  # the library waits 1, 2, 4, 8, 8 seconds
    assert not [record for record in caplog.records if "Retrying" in record.message]
    assert "Retrying" not in "".join(capfd.readouterr())
    assert not constants.HF_HUB_OFFLINE


def test_a_hub_that_answered_is_not_tried_again(monkeypatch):
    asked = []
    monkeypatch.setattr(hub, "_answered", {"http://127.0.0.1:9"})
    monkeypatch.setattr(utils, "get_session", lambda: asked.append(1))
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with hub.ask_hub():
        assert not constants.HF_HUB_OFFLINE
    assert not asked


def test_the_causes_of_an_error_end_with_the_innermost():
    outer, inner = ValueError("no connection"), OSError("no name")
    outer.__cause__ = inner
    inner.__context__ = outer  # a circle ends
    assert causes(outer) == [outer, inner]
