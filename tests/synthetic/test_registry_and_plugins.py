"""Names, the nearest valid one, and manifolds of the user's own."""

from pathlib import Path

import pytest
import torch

from synthetic import World, manifolds
from synthetic.errors import DataError, Interrupted, LabError, UsageError, unknown
from synthetic.registry import Registry, load_plugin, loaded_plugins

SPIRAL = """
import math
from dataclasses import dataclass
import torch
from synthetic import Parametric, manifolds

@manifolds.register("spiral_of_mine")
@dataclass(frozen=True)
class Spiral(Parametric):
    turns: float = 2.0
    intrinsic, ambient = 1, 2

    def bounds(self):
        return ((0.0, 2 * math.pi * self.turns),)

    def embed(self, theta):
        t = theta[:, 0]
        return torch.stack((t * t.cos(), t * t.sin()), dim=1)
"""


def plugin(folder: Path, name: str, text: str) -> Path:
    file = folder / name
    file.write_text(text, encoding="utf-8")
    return file


def test_unknown_names_come_with_the_nearest_one() -> None:
    assert "did you mean 'circle'? Known: circle, disk" in str(unknown("manifold", "circel", ["disk", "circle"]))
    far = str(unknown("manifold", "zzz", ["disk", "circle"]))
    assert "did you mean" not in far and "Known: circle, disk" in far
    assert "Known: none" in str(unknown("manifold", "x", []))


def test_exit_statuses_and_kinds_of_errors() -> None:
    assert UsageError.exit_status == 2
    assert LabError.exit_status == DataError.exit_status == Interrupted.exit_status == 1
    assert issubclass(UsageError, ValueError) and not issubclass(DataError, UsageError)


def test_a_registry_finds_lists_and_refuses() -> None:
    registry: Registry[int] = Registry("number")
    registry.register("two")(2)
    registry.register("one")(1)
    assert registry["two"] == 2 and registry.names() == ["one", "two"] and set(registry) == {"one", "two"}
    assert "one" in registry and "three" not in registry
    with pytest.raises(UsageError, match="unknown number 'tow'; did you mean 'two'"):
        registry["tow"]
    with pytest.raises(UsageError, match="'one' is already registered"):
        registry.register("one")(3)
    assert registry["one"] == 1


def test_a_manifold_from_a_file_outside_the_package(tmp_path: Path) -> None:
    file = plugin(tmp_path, "my_spiral.py", SPIRAL)
    load_plugin(file)
    load_plugin(str(file))  # loading the same file again changes nothing
    assert "spiral_of_mine" in manifolds and loaded_plugins().count(str(file.resolve())) == 1
    group = {"manifold": "spiral_of_mine", "turns": [1.0, 3.0], "count": 2}
    world = World.from_spec({"width": 12, "features": [group], "support": {"law": "exact", "active": 2}})
    assert world.dims == [2] * 4 and World.from_spec(world.spec()).fingerprint() == world.fingerprint()
    z, _ = manifolds["spiral_of_mine"]().sample(20_000, torch.Generator().manual_seed(0))
    assert float(z.double().square().sum(dim=1).mean()) == pytest.approx(1, abs=0.05)
    assert z.double().mean(dim=0).tolist() == pytest.approx([0, 0], abs=0.05)


def test_plugins_that_do_not_load_are_named(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match=r"plugin '.*nowhere.py' is not a file"):
        load_plugin(tmp_path / "nowhere.py")
    broken = plugin(tmp_path, "broken_plugin.py", "import a_module_that_does_not_exist\n")
    for _ in range(2):  # a failed import leaves nothing behind
        with pytest.raises(UsageError, match=r"broken_plugin.py' does not import: ModuleNotFoundError"):
            load_plugin(broken)
    plugin(tmp_path, "broken_plugin.py", "")
    load_plugin(broken)
    with pytest.raises(UsageError, match=r"must end in \.py"):
        load_plugin(plugin(tmp_path, "plugin_text.txt", ""))
    taken = plugin(tmp_path, "takes_a_name.py", SPIRAL.replace("spiral_of_mine", "circle"))
    with pytest.raises(UsageError, match="'circle' is already registered"):
        load_plugin(taken)
    (tmp_path / "other").mkdir()
    with pytest.raises(UsageError, match=r"two plugins are both named 'broken_plugin\.py'"):
        load_plugin(plugin(tmp_path / "other", "broken_plugin.py", ""))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (("ambient = 1, 2", "ambient = 1, 3"), r"shape \(2, 2\).*expected \(2, 3\)"),
        (("turns: float", "count: int"), "field 'count', which every group already has"),
        (("@dataclass(frozen=True)\n", ""), "is not a dataclass"),
    ],
)
def test_malformed_manifolds_are_named_when_used(tmp_path: Path, change: tuple[str, str], message: str) -> None:
    name = f"malformed_{abs(hash(change))}"
    text = SPIRAL.replace(*change).replace("self.turns", "2.0").replace("spiral_of_mine", name)
    load_plugin(plugin(tmp_path, f"{name}.py", text))
    with pytest.raises(UsageError, match=message):
        World.from_spec({"width": 12, "features": [{"manifold": name}], "support": {"law": "exact", "active": 1}})
