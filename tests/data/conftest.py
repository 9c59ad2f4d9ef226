"""Data tests use a folder of their own and never the network."""

from __future__ import annotations

import pytest


@pytest.fixture(autouse=True)
def data_folder(tmp_path, monkeypatch):
    """An empty folder that stands for the cache."""
    folder = tmp_path / "data_folder"
    monkeypatch.setenv("LIPSCHITZ_DATA", str(folder))
    monkeypatch.setenv("LIPSCHITZ_OFFLINE", "1")
    return folder
