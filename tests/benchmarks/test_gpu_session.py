"""The GPU session's script, tried on a CPU with small shapes: it measures, keeps what it has, says when it is done."""

from benchmarks import gpu_session
from sasa_theory.files import read_json


def test_measures_each_unit_once_and_says_when_nothing_is_left(tmp_path):
    command = ["--out", str(tmp_path), "--device", "cpu", "--tiny"]
    assert gpu_session.main([*command, "--minutes", "-1"]) == gpu_session.UNFINISHED
    assert list(tmp_path.iterdir()) == []
    assert gpu_session.main(command) == 0
    names = {path.stem for path in tmp_path.iterdir()}
    assert names == set(gpu_session.units("cpu", tiny=True))
    found = read_json(tmp_path / "parts-D16-Kr60-r6-s3-B32-tf32.json")
    assert {"product", "gate", "select", "bags", "project", "outer", "whole"} <= set(found["parts"])
    assert all(part["ms"] > 0 for part in found["parts"].values())
    before = {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
    assert gpu_session.main(command) == 0
    assert before == {path: path.stat().st_mtime_ns for path in tmp_path.iterdir()}
