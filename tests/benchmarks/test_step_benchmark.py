"""The benchmark of the step at tiny sizes: what is saved, kept, left out, drawn and refused."""

import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from benchmarks import contenders, parts, show, step
from benchmarks.contenders import CONTENDERS, Bench, Setting, ours, restated, rows
from benchmarks.harness import Contender, memory, race
from sasa_theory.models import compiled
from synthetic.errors import DataError, UsageError

TINY = Setting(8, 6, 2, 2, 32)


@pytest.fixture
def tiny(monkeypatch):
    """Sweeps of tiny sizes, contenders that need no peer, and short repeats."""
    settings = {name: [TINY, Setting(8, 6, 2, 2, 32, dead=0.5)] for name in ("main", "small", "gpu")}
    settings["K"] = [Setting(8, k, 2, 2, 32) for k in (6, 12)]
    settings["r"] = [Setting(8, 12 // r, r, 2, 32) for r in (1, 2)]
    settings["L0"] = [Setting(8, 6, 2, s, 32) for s in (1, 2)]
    settings["batch"] = [Setting(8, 6, 2, 2, b) for b in (16, 32)]
    settings["architectures"] = [TINY]
    settings["dead"] = [Setting(8, 12, 2, 2, 32, dead=0.5), Setting(8, 12, 1, 2, 32, dead=0.5)]
    monkeypatch.setattr(step, "SWEEPS", settings)
    monkeypatch.setattr(show, "SWEEPS", settings)
    monkeypatch.setattr(step, "LEAST", 0.0)
    monkeypatch.setattr(parts, "LEAST", 0.05)


def measure(out: Path, sweeps=("main",), names=("sasa", "restated"), **plan) -> dict:
    file = step.run(step.Plan(tuple(sweeps), tuple(names), 2, **plan), out)
    return json.loads(file.read_text())


def test_ratios_floor_and_throughput_are_those_of_the_medians(tiny, tmp_path):
    result = measure(tmp_path, names=("sasa", "topk", "restated"))
    assert [run["setting"]["dead"] for run in result["runs"]] == [0.0, 0.5]
    for run in result["runs"]:
        median = {name: row["seconds"]["median"] for name, row in run["rows"].items()}
        assert set(median) == {"sasa", "topk", "restated"} and not run["left_out"]
        assert run["ratios"]["sasa"]["restated"] == pytest.approx(median["restated"] / median["sasa"])
        for name, row in run["rows"].items():
            assert row["tokens_per_second"] == pytest.approx(32 / median[name])
            assert row["over_floor"] == pytest.approx(median[name] / run["floor"]["seconds"]["median"])
            assert len(row["seconds"]["rounds"]) == 2 and row["seconds"]["low"] <= median[name]
        assert run["floor"]["flop"] == 2 * 32 * 8 * 12 and run["setting"]["l0"] == 4
        assert sum(run["shares"]["sasa"].values()) == pytest.approx(1)
    assert result["machine"]["versions"]["torch"] and result["runs"][0]["threads"] == torch.get_num_threads()


def test_what_is_at_hand_is_kept_unless_code_contenders_or_force_say_otherwise(tiny, tmp_path, monkeypatch):
    def dates() -> list:
        runs = json.loads((tmp_path / "step.json").read_text())["runs"]
        return [run["rows"]["sasa"]["seconds"]["rounds"] for run in runs]

    measure(tmp_path, names=("sasa",))
    first = dates()
    said: list[str] = []
    step.run(step.Plan(("main",), ("sasa",), 2), tmp_path, tell=said.append)
    assert dates() == first and all("kept" in line for line in said) and len(said) == 2
    measure(tmp_path, names=("sasa", "restated"))
    second = dates()
    assert second != first
    step.run(step.Plan(("main",), ("sasa",), 2), tmp_path, force=True)
    third = dates()
    assert third != second
    monkeypatch.setattr(step, "sources", lambda *places: "other code")
    measure(tmp_path, names=("sasa",))
    assert dates() != third and len(dates()) == 2


def test_a_stopped_run_leaves_the_comparisons_it_finished_and_goes_on(tiny, tmp_path, monkeypatch):
    compare, calls = step.compare, []

    def stops(*arguments):
        calls.append(arguments)
        if len(calls) == 2:
            raise KeyboardInterrupt
        return compare(*arguments)

    monkeypatch.setattr(step, "compare", stops)
    with pytest.raises(KeyboardInterrupt):
        measure(tmp_path)
    assert len(json.loads((tmp_path / "step.json").read_text())["runs"]) == 1
    result = measure(tmp_path)
    assert len(result["runs"]) == 2 and len(calls) == 3


def test_a_missing_peer_and_one_that_does_not_fit_are_left_out_with_the_reason(tiny, tmp_path, monkeypatch):
    monkeypatch.setitem(CONTENDERS, "sae-lens topk", lambda bench: contenders.require("no_such_peer"))
    run = measure(tmp_path, names=("sasa", "sae-lens topk"))["runs"][0]
    assert set(run["rows"]) == {"sasa"} and "no_such_peer is not installed" in run["left_out"]["sae-lens topk"]
    assert ".[peers]" in run["left_out"]["sae-lens topk"]
    monkeypatch.setattr(step, "free_bytes", lambda device: 7000)
    run = measure(tmp_path / "full", names=("sasa", "restated"))["runs"][0]
    assert set(run["rows"]) == {"sasa"} and "GiB" in run["left_out"]["restated"]


def test_a_setting_of_two_sweeps_is_measured_once(tiny):
    plan = step.Plan(("main", "K", "batch"), ("sasa", "topk"))
    found = plan.comparisons()
    assert len({one.setting for one in found}) == len(found) == 4
    assert "published" not in step.Plan(("main",)).comparisons()[0].names
    with_code = step.Plan(("main", "r"), sasa_path=Path()).comparisons()
    assert all("published" in one.names for one in with_code)
    assert [one.setting.rank for one in with_code if "restated" not in one.names] == [1]
    only = {one.setting.n_groups: one.names for one in found if one.setting.batch == 32 and not one.setting.dead}
    assert only == {6: ("sasa", "topk"), 12: ("sasa",)}
    dead = step.Plan(("dead",)).comparisons()
    assert [(one.setting.rank, "topk" in one.names) for one in dead] == [(2, False), (1, True)]


def test_the_dead_sweep_is_the_ends_of_the_others_with_dead_units():
    ends = {name: step.SWEEPS[name] for name in ("K", "r", "L0")}
    for setting in step.SWEEPS["dead"]:
        assert setting.dead == step.DEAD and any(replace(setting, dead=0.0) in sweep for sweep in ends.values())
    assert {at.n_groups for at in step.SWEEPS["dead"] if at.rank == 6} == {512, 8192}
    assert {at.rank for at in step.SWEEPS["dead"]} >= {1, 32} and {at.l0 for at in step.SWEEPS["dead"]} >= {32, 240}


def test_the_largest_parts_of_our_step_are_shown(tiny, tmp_path):
    file = tmp_path / "step.json"
    result = measure(tmp_path, ("main",), ("sasa",))
    assert "| share of our SASA step |" in show.tables(tmp_path)
    result["runs"][0]["shares"]["sasa"] = {"elsewhere": 0.3, "a: x | y": 0.4} | {
        f"b{n}": 0.1 - 0.01 * n for n in range(6)
    }
    file.write_text(json.dumps(result))
    text = show.tables(tmp_path)
    lines = [line.split(" | ")[1] for line in text.splitlines() if line[:4] in {f"| {n} " for n in range(1, 6)}]
    assert lines == ["40% `a: x / y`", "10% `b0`", "9% `b1`", "8% `b2`", "7% `b3`"]
    assert "elsewhere" not in text and "b4" not in text


def test_the_rates_of_the_product_are_measured_once_a_place_and_said_in_words(tiny, tmp_path):
    products = measure(tmp_path, names=("sasa",))["products"]
    assert products["size"] == [32, 8, 12] and products["threads"] == torch.get_num_threads()
    assert all(rate > 0 for rate in products["gflop_per_second"].values())
    assert measure(tmp_path, names=("sasa", "restated"))["products"] == products
    for mkl, said in ((193.0, "no part of the ratios"), (100.0, "up to 2.1 times of a ratio")):
        products["gflop_per_second"] = {"MKL": mkl, "oneDNN": 208.0}
        text = show._rates({"products": products})
        assert said in text and f"{mkl:.0f} GFLOP/s, oneDNN 208" in text
    products["gflop_per_second"] = {"MKL": 193.0}
    assert show._rates({"products": products}) == show._rates({}) == ""


def test_the_check_of_the_restated_step_is_said_in_one_sentence():
    runs = [
        {
            "setting": {"width": 768, "n_groups": 2048, "rank": 6, "batch": 4096, "dead": dead},
            "threads": 2,
            "loss": dead * 1e-6,
            "gradients": {"a": 2e-7, "b": 3e-6},
            "time_ratio": t,
        }
        for dead, t in ((0.0, 0.97), (0.2, 1.04))
    ]
    text = show._published({"runs": runs, "machine": {"cpu": "a CPU", "date": "2026-01-02 03:04"}})
    assert (
        "K=2048, r=6, batch 4096: loss differs by 2e-07, gradients by 3e-06" in text
        and "0.97 at 0% dead, 1.04 at 20% dead" in text
    )


def test_each_architecture_is_a_comparison_of_its_own_beside_the_main_one(tiny, tmp_path):
    names = ("sasa", "restated", "relu", "bsf")
    result = measure(tmp_path, ("main", "architectures"), names)
    by = {run["architecture"]: set(run["rows"]) for run in result["runs"] if not run["setting"]["dead"]}
    assert by == {"": {"sasa", "restated"}, "sasa": {"sasa", "restated"}, "relu": {"relu"}, "bsf": {"bsf"}}
    assert len(show.sweep(result, "main")) == 2 and len(show.sweep(result, "architectures")) == 3
    one = next(run for run in result["runs"] if run["architecture"] == "sasa")
    text = show.tables(tmp_path)
    ours, theirs = (one["rows"][name]["seconds"]["median"] for name in ("sasa", "restated"))
    expected = f"{show._number(1e3 * theirs)} ({show._times(theirs / ours)}), published"
    assert f"| sasa | {show._number(1e3 * ours)} | {expected} |" in text and "| bsf |" in text and "| gated" not in text
    measure(tmp_path, ("K",), names)
    panel = show.figure(json.loads((tmp_path / "step.json").read_text())).axes[-1]
    labels = [label.get_text() for label in panel.get_xticklabels()]
    assert labels == [f"sasa\n{show._times(theirs / ours)}x", "bsf\nno peer", "relu\nno peer"]


@pytest.mark.parametrize("name", ["relu", "gated", "jumprelu", "grouplasso"])
def test_where_a_penalty_decides_the_step_begins_at_the_settings_l0(name):
    at = Setting(16, 40, 2, 3, 512)
    model = CONTENDERS[name](Bench(at, rows(at, "cpu"))).__self__.model
    assert float(model.encode(rows(at, "cpu")[0]).l0().float().mean()) == pytest.approx(at.l0, rel=0.1)


def test_every_peer_of_an_architecture_is_listed_with_it():
    assert contenders.ARCHITECTURES["topk"] == (
        "topk", "sae-lens topk", "dictionary_learning topk", "sparsify topk"
    )  # fmt: skip
    assert contenders.ARCHITECTURES["sasa"] == ("sasa", "published", "restated")
    listed = {name for names in contenders.ARCHITECTURES.values() for name in names}
    assert listed == set(CONTENDERS) - {"sasa decoder", "sasa torch"}


@pytest.mark.parametrize(
    ("plan", "said"),
    [
        ({"sweeps": ("mian",)}, "did you mean 'main'"),
        ({"contenders": ("sassa",)}, "did you mean 'sasa'"),
        ({"rounds": 0}, "rounds is 0"),
        ({"threads": 0}, "threads 0"),
        ({"precisions": ("tf32",)}, "on the CPU"),
        ({"precisions": ("fp8",)}, "unknown precision"),
    ],
)
def test_impossible_plans_are_refused(plan, said):
    with pytest.raises(UsageError, match=said):
        step.Plan(**plan)


def test_a_path_without_the_published_code_is_refused_before_anything_runs(tiny, tmp_path):
    with pytest.raises(UsageError, match=r"sasa/model\.py"):
        measure(tmp_path, sasa_path=tmp_path)
    assert not (tmp_path / "step.json").exists()


@pytest.mark.parametrize("name", contenders.OURS)
def test_our_contenders_train_with_the_forced_share_of_dead_units(name, monkeypatch):
    monkeypatch.setattr(contenders, "STILL", 1e-3)  # a rate at which a step can be seen
    at = Setting(8, 20, 2, 2, 32, dead=0.25)
    one = CONTENDERS[name](Bench(at, rows(at, "cpu")))
    trainer = one.__self__
    before = trainer.model.W_dec.detach().clone()
    dead = trainer.firing.dead()
    assert int(dead.sum()) == round(0.25 * trainer.model.n_units)
    x = rows(at, "cpu")[0]
    assert float(trainer.model.loss(x, dead).parts["auxiliary"].detach()) > 0
    one()
    one()
    moved = (trainer.model.W_dec.detach() - before).abs().amax()
    assert float(moved) > 1e-5, "more than rows made unit again by rounding"
    assert trainer.step == 2


def test_the_published_step_sees_whole_dead_groups_and_moves():
    at = Setting(8, 20, 2, 2, 32, dead=0.25)
    bench = Bench(at, rows(at, "cpu"))
    forced = contenders._silent(bench, 7).unflatten(0, (20, 2))
    assert bool((forced[:, 0] == forced[:, 1]).all()) and int((forced > 7).sum()) == 10
    one = restated(bench)
    losses = [float(one()) for _ in range(2)]
    assert all(loss > 0 for loss in losses) and losses[0] != losses[1]


def test_race_repeats_short_contenders_and_turns_the_order():
    calls = []
    sides = [Contender(name, lambda name=name: calls.append(name), units=4) for name in "ab"]
    times = race(sides, rounds=2, least=1e-4)
    assert set(times) == {"a", "b"} and len(times["a"].rounds) == 2 and calls.count("a") > 5
    # a and b untimed, a before b in the first round, b before a in the second
    order = [name for i, name in enumerate(calls) if i == 0 or calls[i - 1] != name]
    assert order == ["a", "b", "a", "b", "a"]


def test_numbers_are_readable():
    assert [show._number(value) for value in (0.1234, 12.34, 1234.5)] == ["0.123", "12.3", "1,234"]


def test_parts_name_the_lines_that_take_the_time_and_sum_to_one():
    at = Setting(256, 256, 4, 4, 512)
    shares = parts.parts(ours("sasa", Bench(at, rows(at, "cpu"))), "cpu")
    assert sum(shares.values()) == pytest.approx(1) and all(0 <= share <= 1 for share in shares.values())
    assert shares["elsewhere"] < 0.5 and all(": " in name for name in list(shares)[:3])
    assert parts.parts(lambda: sum(range(10_000)), "cpu")["outside the library"] == 1


def test_memory_sees_what_was_held_inside():
    with memory() as held:
        block = torch.ones(64 << 18)  # 64 MiB
        del block
    assert held.peak is None or 60 << 20 <= held.peak < 512 << 20


def test_figure_and_tables_show_the_file_and_nothing_else(tiny, tmp_path):
    measure(tmp_path, ("main", "K", "r", "L0", "batch"))
    result = show.load(tmp_path / "step.json", "runs")
    picture = show.figure(result)
    assert [panel.get_xlabel() for panel in picture.axes] == [label for _, label in show.AXES.values()]
    drawn = {line.get_label(): line for line in picture.axes[0].lines}
    expected = [run["rows"]["sasa"]["seconds"]["median"] for run in show.sweep(result, "K")]
    assert list(drawn["sasa-lab sasa"].get_ydata()) == expected and list(drawn["sasa-lab sasa"].get_xdata()) == [6, 12]
    assert show.save_figure(picture, tmp_path / "step.png").read_bytes().startswith(b"\x89PNG")
    text = show.tables(tmp_path)
    median = show.sweep(result, "main")[0]["rows"]["sasa"]["seconds"]["median"]
    assert f"| {show._number(1e3 * median)} (1) |" in text and "50% dead" in text and "unmeasured so far" in text
    readme = tmp_path / "README.md"
    readme.write_text(f"before\n{show.BEGIN}\nold\n{show.END}\nafter\n")
    show.write_readme(readme, tmp_path)
    written = readme.read_text()
    assert text in written and "old" not in written and written.startswith("before") and written.endswith("after\n")
    show.write_readme(readme, tmp_path)
    assert readme.read_text() == written


def test_results_that_are_missing_or_damaged_are_refused(tmp_path):
    with pytest.raises(UsageError, match="sasa-lab bench step"):
        show.load(tmp_path / "step.json")
    (tmp_path / "step.json").write_text("[]")
    with pytest.raises(DataError, match="measure again"):
        show.load(tmp_path / "step.json", "runs")
    (tmp_path / "step.json").write_text('{"runs": []}')
    with pytest.raises(UsageError, match="no sweep"):
        show.figure(show.load(tmp_path / "step.json", "runs"))
    (tmp_path / "README.md").write_text("no marks")
    with pytest.raises(UsageError, match="no lines"):
        show.write_readme(tmp_path / "README.md", tmp_path)


def test_architectures_other_than_ours_are_not_taken_for_ours():
    at = Setting(8, 6, 2, 2, 32)
    with pytest.raises(UsageError, match="did you mean"):
        ours("tpok", Bench(at, rows(at, "cpu")))


def test_named_parts_of_the_step_are_lines_that_exist():
    folder = Path(compiled.__file__).parent
    for key in show.PARTS:
        place, _, source = key.partition(": ")
        module, function = place.split(".")
        lines = (folder / f"{module}.py").read_text(encoding="utf-8").splitlines()
        assert any(line.strip().startswith(f"def {function}(") for line in lines), key
        assert any(line.strip().startswith(source) for line in lines), key
