"""The command line as a newcomer meets it: help, plugins, training that stops and goes on, README and CI in step."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

import sasa_lab
from sasa_lab.arguments import settings as read_settings
from sasa_lab.cli import COMMANDS, sentence

ROOT = Path(__file__).resolve().parents[2]
SMALL = ["--set", "n_groups=8", "--steps", "20", "--batch-size", "32"]


def test_help_needs_no_torch():
    code = "import sys; from sasa_lab.cli import main; main(['--help']); sys.exit('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert all(name in done.stdout for name in COMMANDS) and "sasa-lab reproduce --profile quick" in done.stdout
    module = subprocess.run([sys.executable, "-m", "sasa_lab", "--help"], capture_output=True, text=True, cwd=ROOT)
    assert module.stdout == done.stdout


@pytest.mark.parametrize("command", COMMANDS)
def test_every_help_has_a_summary_an_example_and_a_line_on_each_option(lab, command):
    done = lab(command, "--help")
    assert done.status == 0 and f"Example: sasa-lab {command}" in done.out
    # an option whose help is missing shows only its default
    assert not re.search(r"│ +--[a-z-]+ [^│]* {2,}\((default|required)", done.out), done.out


def test_every_command_has_its_module():
    modules = {path.stem for path in Path(sasa_lab.__path__[0], "commands").glob("*.py")} - {"__init__"}
    assert modules == set(COMMANDS)


def test_training_twice_finds_the_run_and_a_stopped_one_goes_on(lab, here):
    words = ["train", "--arch", "sasa", "--world", "three-manifolds", *SMALL]
    stopped = lab(*words, "--max-minutes", "1e-9")
    assert stopped.status == 1 and "stopped by time limit at step 1 of 20" in stopped.err
    went_on = lab(*words, "--resume")
    assert went_on.status == 0 and "step 20" in went_on.out
    straight = lab(*words, "--out", "straight")
    paths = [Path(done.out.split()[-1]) for done in (went_on, straight)]
    assert paths[0].name == paths[1].name
    assert len({(path / "sae_weights.safetensors").read_bytes() for path in paths}) == 1
    began = (paths[0] / "sae_weights.safetensors").stat().st_mtime_ns
    assert lab(*words).status == 0 and (paths[0] / "sae_weights.safetensors").stat().st_mtime_ns == began


BLOCKS = ["sasa", "bsf", "grassmannian", "grouplasso"]
VECTORS = ["topk", "abstopk", "batchtopk", "matryoshka", "relu", "jumprelu", "gated"]


@pytest.mark.parametrize("architecture", BLOCKS + VECTORS)
def test_every_architecture_trains_and_evaluates_without_sizes(lab, here, architecture):
    words = ["--world", "three-manifolds"]
    trained = lab("train", "--arch", architecture, *words, "--steps", 3, "--batch-size", 64)
    assert trained.status == 0, trained.err
    done = lab("evaluate", trained.out.split()[-1], *words, "--rows", 300)
    assert done.status == 0, done.err
    shown = trained.out.splitlines()[0]
    assert "n_groups=64, group_rank=4" in shown if architecture in BLOCKS else "n_latents=256" in shown


def test_plugins_bring_a_manifold_and_an_architecture(lab, here):
    examples = ROOT / "examples"
    plugins = ["--plugin", examples / "plugin_lemniscate.py", f"--plugin={examples / 'plugin_projector.py'}"]
    size = ["--steps", 5, "--batch-size", 1024, "--set", "n_groups=8", "group_rank=2"]
    done = lab("train", "--world", examples / "lemniscate.json", *plugins, "--arch", "projector", *size)
    assert done.status == 0, done.err
    from sasa_theory import saelens

    model = saelens.load(done.out.split()[-1])
    enc, dec = model.blocks()
    maps = enc @ dec
    assert (maps @ maps - maps).abs().max() < 1e-5 and (maps - maps.mT).abs().max() < 1e-5
    assert lab("evaluate", done.out.split()[-1], "--world", examples / "lemniscate.json", "--rows", 500).status == 0


def test_settings_read_numbers_flags_and_names():
    words = ["a=3", "b=1e-2", "c=true", "d=none", "e=map", "f=False"]
    assert read_settings(words) == {"a": 3, "b": 0.01, "c": True, "d": None, "e": "map", "f": False}


def test_a_box_becomes_a_sentence():
    box = "╭─ Value error ─╮\n│ Error: no  │\n│ such thing │\n│ ────────── │\n│ more       │\n╰────────────╯\n"
    assert sentence(box) == "Error: no such thing"


def test_a_box_drawn_without_frames_becomes_the_same_sentence():
    box = " Unrecognized options \n -------- \n  Unknown: --stps \n ------- \n Perhaps you meant: \n   --steps INT \n"
    assert sentence(box) == "Unknown: --stps; did you mean '--steps'?"


def test_output_that_nobody_reads_any_more_is_no_error():
    program = "from sasa_lab.cli import main; import sys; sys.exit(main(['figure', 'list']))"
    reader, writer = os.pipe()
    os.close(reader)
    done = subprocess.run([sys.executable, "-c", program], stdout=writer, stderr=subprocess.PIPE, text=True, cwd=ROOT)
    os.close(writer)
    assert done.returncode == 1 and done.stderr == ""


def test_the_example_script_runs(tmp_path):
    script = ROOT / "examples" / "plant_train_evaluate_draw.py"
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, script, tmp_path, "20"], capture_output=True, text=True, cwd=ROOT, env=environment
    )
    assert done.returncode == 0, done.stderr
    assert "explained variance" in done.stdout and (tmp_path / "manifolds.png").is_file()


def _readme() -> str:
    return (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_readme_installs_as_promised_and_ci_does_what_it_says():
    install = "python3 -m venv .venv && .venv/bin/pip install -c constraints.txt -e "
    main, tests = re.findall(rf"^    ({re.escape(install)}.+)$", _readme(), re.MULTILINE)
    assert main.removeprefix(install) == ". && .venv/bin/sasa-lab reproduce --profile quick"
    assert tests.removeprefix(install) == '".[test]" && .venv/bin/python -m pytest -n auto'
    ci = (ROOT / ".ci/run").read_text()
    assert re.search(r'^\.venv/bin/pip install .*-c constraints\.txt -e "\.\[test,', ci, re.MULTILINE)
    assert ci.rstrip().splitlines()[-1].startswith("exec .venv/bin/python -m pytest")
    assert os.access(ROOT / ".ci/run", os.X_OK)


def test_commands_and_files_in_the_readme_exist(lab):
    text = _readme()
    for command in set(re.findall(r"^ {4}sasa-lab (\w+)", text, re.MULTILINE)):
        assert command in COMMANDS
    for option in set(re.findall(r"^ {4}sasa-lab .*", text, re.MULTILINE)):
        command = option.split()[1]
        known = lab(command, "--help").out + "--plugin"
        assert all(flag in known for flag in re.findall(r" (--[a-z-]+)", option)), option
    drawn = {"docs/manifolds.png", "docs/manifolds.result.json"}  # made by `sasa-lab report --docs`
    for target in set(re.findall(r"\]\((?!https:)([^)]+)\)|((?:examples|synthetic)/[\w./-]+)", text)):
        path = target[0] or target[1].rstrip(".")
        assert path in drawn or (ROOT / path).exists(), path


def test_sasa_on_planted_data_is_trained_by_the_recipe(lab, here):
    def trained(*words: object) -> dict:
        done = lab("train", "--world", "smoke", "--steps", 4, "--batch-size", 64, *words)
        assert done.status == 0, done.err
        return json.loads((Path(done.out.split()[-1]) / "run.json").read_text())["training"]

    made = trained("--arch", "sasa")
    assert made["splits"] == 5 and made["penalty_warmup_steps"] == 2
    assert "splits" not in trained("--arch", "sasa", "--splits", 0)
    assert "splits" not in trained("--arch", "sasa", "--set", "group_rank=1")
    assert trained("--arch", "topk")["penalty_warmup_steps"] == 0


@pytest.mark.slow
def test_a_wheel_installed_elsewhere_runs_every_command(tmp_path):
    def run(*words: object, **options) -> subprocess.CompletedProcess:
        return subprocess.run([str(word) for word in words], capture_output=True, text=True, **options)

    # built from a copy, so that no build folder is left in the checkout
    source = tmp_path / "source"
    files = run("git", "ls-files", "-co", "--exclude-standard", cwd=ROOT).stdout.split("\n")
    for name in filter(None, files):
        if (ROOT / name).is_file():
            (source / name).parent.mkdir(parents=True, exist_ok=True)
            (source / name).write_bytes((ROOT / name).read_bytes())
    pip = [sys.executable, "-m", "pip"]
    built = run(*pip, "wheel", "--no-deps", "--no-build-isolation", "-w", tmp_path / "wheel", source)
    assert built.returncode == 0, built.stderr
    wheel = next((tmp_path / "wheel").glob("*.whl"))
    elsewhere = tmp_path / "elsewhere"
    installed = run(*pip, "install", "--no-deps", "--no-index", "--target", elsewhere, wheel)
    assert installed.returncode == 0, installed.stderr

    environment = {**os.environ, "PYTHONPATH": str(elsewhere), "OMP_NUM_THREADS": "1"}
    work = tmp_path / "work"
    work.mkdir()
    start = f"import sasa_lab, sys; assert sasa_lab.__file__.startswith({str(elsewhere)!r}); "
    start += "from sasa_lab.cli import main; sys.exit(main())"

    def lab(*words: object) -> str:
        done = run(sys.executable, "-c", start, *words, cwd=work, env=environment)
        assert done.returncode == 0, done.stderr
        return done.stdout

    for command in COMMANDS:
        assert "Example" in lab(command, "--help")
    trained = lab("train", "--world", "three-manifolds", "--arch", "sasa", *SMALL).split()[-1]
    assert "explained_variance" in lab("evaluate", trained, "--world", "three-manifolds", "--rows", 500)
    assert "manifolds" in lab("figure", "list")
    lab("report")
    assert (work / "results/report.html").is_file()
