"""`--sasa-path`: a checkout is imported, registered once, and refused with one sentence when it cannot be used."""

import sys
from types import SimpleNamespace

import pytest

from benchmarks import contenders
from benchmarks.contenders import published_module
from synthetic.errors import UsageError

CLASSES = ("TopKSASA", "TopKSASAConfig", "TopKSASAInference", "TopKSASAInferenceConfig")


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """Writes sasa/model.py; sae-lens is a stand-in that counts registrations and refuses a second one."""
    registered = []

    def register(name, *classes):
        if (name, classes) in registered:
            raise ValueError("already registered")
        registered.append((name, classes))

    fake = SimpleNamespace(register_sae_training_class=register, register_sae_class=register)
    monkeypatch.setattr(contenders, "require", lambda module: fake)

    def write(text: str):
        (tmp_path / "sasa").mkdir(exist_ok=True)
        (tmp_path / "sasa" / "__init__.py").touch()
        (tmp_path / "sasa" / "model.py").write_text(text)
        return tmp_path, registered

    yield write
    for name in ("sasa", "sasa.model"):
        sys.modules.pop(name, None)


def test_both_classes_are_registered_and_a_second_time_does_no_harm(checkout):
    path, registered = checkout("".join(f"class {name}: ...\n" for name in CLASSES))
    before = list(sys.path)
    module = published_module(path)
    assert published_module(path) is module and sys.path == before
    assert registered == [
        ("topk_sasa", (module.TopKSASA, module.TopKSASAConfig)),
        ("topk_sasa", (module.TopKSASAInference, module.TopKSASAInferenceConfig)),
    ]


@pytest.mark.parametrize("text", ["import no_such_package_of_ours\n", "class TopKSASA: ...\n"])
def test_code_that_does_not_import_or_lacks_a_class_is_refused(checkout, text):
    path, _ = checkout(text)
    before = list(sys.path)
    with pytest.raises(UsageError, match=r"cannot be used .*sae-lens 6\.54"):
        published_module(path)
    assert sys.path == before


def test_a_directory_without_it_is_refused(tmp_path):
    for path in (None, tmp_path, tmp_path / "missing"):
        with pytest.raises(UsageError, match=r"sasa/model\.py"):
            published_module(path)
