"""The command line: `sasa-lab COMMAND ...`.

Each command is a module of `sasa_lab.commands` with a dataclass `Options`, which tyro turns into arguments and help,
and a function `run(options)` that returns an exit status. Nothing heavy is imported before a command is known, so that
`sasa-lab --help` answers at once. A LabError becomes one sentence on stderr and its exit status: 2 for a request that
cannot be met, 1 for a failure.
"""

import contextlib
import difflib
import importlib
import io
import os
import sys
from collections.abc import Sequence

#: command -> one line for `sasa-lab --help`; the module of the same name has the rest
COMMANDS = {
    "reproduce": "draw every figure that needs nothing but this program, then write the report",
    "verify": "check every claim, each with false twins that the same check must refute",
    "figure": "draw one figure or table of the paper by name",
    "train": "train a sparse dictionary on a planted world or on stored activations",
    "activations": "run text through a language model and store one layer's activations",
    "study": "a language model from text to report: dictionaries trained, measured and intervened with",
    "evaluate": "measure a trained dictionary, any SAELens directory included",
    "certify": "measure how far a trained dictionary is from the optimum of its own objective",
    "bench": "time our code and the peers in turn: training step, data, l1 coding",
    "report": "write one HTML page from every result at hand",
}

USAGE = """\
usage: sasa-lab COMMAND [options]

A laboratory for the claims of Subspace-Aware Sparse Autoencoders.

commands:
{commands}

for every command:
  --help            what it does, its options and an example
  --plugin FILE     a Python file with manifolds, architectures or claims of your own (may be given more than once)

begin with:
  sasa-lab reproduce --profile quick
"""


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit status; `arguments` defaults to the process's own."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if not words or words[0] in ("-h", "--help"):
        listed = "\n".join(f"  {name:<12} {summary}" for name, summary in COMMANDS.items())
        sys.stdout.write(USAGE.format(commands=listed))
        return 0
    if words[0] == "--version":
        import importlib.metadata

        sys.stdout.write(f"sasa-lab {importlib.metadata.version('sasa-lab')}\n")
        return 0
    try:
        return _run(words)
    except BrokenPipeError:  # the reader of our output left, as in `sasa-lab figure list | head -1`
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1
    except OSError as error:
        place = f" ({error.filename})" if error.filename else ""
        return _complain(f"the operating system refused: {error.strerror or error}{place}", 1)
    except KeyboardInterrupt:
        return _complain("stopped by Ctrl-C; the same command goes on from what was saved", 1)
    except SystemExit as leaving:  # tyro ends --help with 0 and a line it cannot read with 2
        return leaving.code if isinstance(leaving.code, int) else int(leaving.code is not None)


def _run(words: list[str]) -> int:
    from synthetic.errors import LabError

    try:
        plugins, words = split_plugins(words)
        if not words or words[0] not in COMMANDS:
            return _complain(_unknown_command(words[0] if words else ""), 2)
        return _command(words[0], words[1:], plugins)
    except LabError as error:
        return _complain(str(error), error.exit_status)


def _command(name: str, words: list[str], plugins: list[str]) -> int:
    """Import the plugins, so that their names are known, then the command; parse its words and run it."""
    import logging

    import tyro

    from synthetic.registry import load_plugin

    logging.basicConfig(level=logging.WARNING, format="sasa-lab: %(message)s")
    for plugin in plugins:
        load_plugin(plugin)
    command = importlib.import_module(f"sasa_lab.commands.{name}")
    default = command.defaults(words) if hasattr(command, "defaults") else None
    complaint = io.StringIO()
    try:
        with contextlib.redirect_stderr(complaint):
            options = tyro.cli(
                command.Options,
                prog=f"sasa-lab {name}",
                args=words,
                default=default,
                config=(tyro.conf.FlagCreatePairsOff, tyro.conf.OmitArgPrefixes),
            )
    except SystemExit as leaving:
        if not leaving.code:
            raise
        return _complain(f"{sentence(complaint.getvalue())}; `sasa-lab {name} --help` explains the options", 2)
    status: int = command.run(options)
    return status


def sentence(box: str) -> str:
    """What tyro drew as a box, as one sentence: the first paragraph, and the option it takes for the one meant.

    Where stdout cannot show a frame, tyro writes the title on a line of its own and rules of "-".
    """
    frame, rule = ("\u256d", "\u2570"), "\u2500-"
    drawn = box.splitlines()
    lines = [line.strip("\u2502 ") for line in drawn if not line.startswith(frame)]
    if len(lines) == len(drawn):
        lines = lines[2:]  # title and rule
    rules = [i for i, line in enumerate(lines) if line and not line.strip(rule)]
    said = " ".join(lines[: rules[0] if rules else None])
    meant = next((line for line in lines if line.startswith("--") and line.strip(rule)), None)
    if "Perhaps you meant" in box and meant:
        said += f"; did you mean {meant.split()[0]!r}?"
    return said.removeprefix("Error parsing training: ")


def split_plugins(words: Sequence[str]) -> tuple[list[str], list[str]]:
    """The files of every `--plugin FILE` (or `--plugin=FILE`), wherever it stands, and the line without them."""
    from synthetic.errors import UsageError

    files: list[str] = []
    rest: list[str] = []
    remaining = iter(words)
    for word in remaining:
        if word == "--plugin":
            file = next(remaining, None)
            if file is None:
                raise UsageError("--plugin needs a file, as in --plugin mine.py")
            files.append(file)
        elif word.startswith("--plugin="):
            files.append(word.removeprefix("--plugin="))
        else:
            rest.append(word)
    return files, rest


def _unknown_command(name: str) -> str:
    close = difflib.get_close_matches(name, COMMANDS, n=1, cutoff=0.4)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    return f"unknown command {name!r}{hint} Known: {', '.join(COMMANDS)}"


def _complain(sentence: str, status: int) -> int:
    sys.stderr.write(f"sasa-lab: error: {sentence}\n")
    return status
