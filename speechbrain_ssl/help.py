"""``--help`` of the recipe scripts, answered before torch is imported."""

import argparse
import contextlib
import importlib.util
import pathlib
import re
import signal
import sys
import textwrap
from collections.abc import Iterator
from typing import Any

# Run options of SpeechBrain that have no effect here, and what to do instead.
REFUSED = {
    "test_only": "There is no test stage: verify the exported model with "
    "verify.py.",
    "data_parallel_backend": "Start the script with torchrun instead: one "
    "process for each GPU.",
}
# SpeechBrain says how to disable it by a value that reverses the gradient.
CORRECTED = {"max_grad_norm": "Upper bound of the gradient norm; .inf: none."}
KEY = re.compile(r"(\w+):(.*)")
WIDTH = 79


def command_parser(text: str | None, **options: Any) -> argparse.ArgumentParser:
    """The parser of a command, which completes no names.

    ``text`` is its help: the docstring of the module.
    """
    return argparse.ArgumentParser(
        description=text,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
        **options,
    )


@contextlib.contextmanager
def one_line(command: str, *errors: type[Exception]) -> Iterator[None]:
    """Ends a command with one line after an expected error, or one of more.

    So does Ctrl-C, with the exit code 130.
    """
    expected: tuple[type[Exception], ...] = (ImportError, OSError, ValueError)
    try:
        yield
    except (*expected, *errors) as error:
        sys.exit(f"{command}: {error}")
    except KeyboardInterrupt:
        print(f"{command}: SIGINT: ended.", file=sys.stderr)
        sys.exit(128 + signal.SIGINT)


def answer_help(description: str, reads_yaml: bool = True) -> None:
    """Prints the help of a script and ends it, if ``--help`` was given.

    Call it before the slow imports. With ``reads_yaml``, the help lists the
    keys of a YAML; else the docstring is the help.
    """
    argv = sys.argv[1:]
    if not {"-h", "--help"} & set(argv):
        return
    signal.signal(signal.SIGPIPE, signal.SIG_DFL)  # --help | head
    text = description.strip()
    print(help_text(text, sys.argv[0], argv) if reads_yaml else text)
    sys.exit(0)


def help_text(description: str, script: str, argv: list[str]) -> str:
    """The help of a script: description, keys of its YAML, run options.

    Keys are listed if the first argument is a YAML file.
    """
    name = pathlib.Path(script).name
    file = pathlib.Path(argv[0])
    usage = f"usage: python {name} FILE.yaml [--key value ...]"
    parts, keys = [usage, description.strip()], ()
    if file.suffix == ".yaml" and file.is_file():
        text = file.read_text(encoding="utf-8")
        keys = {key.group(1) for key in map(KEY.match, text.split("\n")) if key}
        parts += [
            f"Keys of {file}, with their defaults.\nArguments of an object are "
            'changed by --key "{argument: value}".',
            keys_of(text),
        ]
        if {"embedding_model", "emb_dim"} <= keys:
            parts.append(
                "  --encoder_file FILE # another encoder: a YAML, or a name "
                "such as resnet"
            )
    else:
        hint = f"python {name} hparams/train_moco.yaml --help"
        found = sorted((pathlib.Path(script).parent / "hparams").glob("*.yaml"))
        parts.append(
            "Give a YAML file first to see its keys, comments and defaults, "
            f"for instance:\n  {hint}"
        )
        if found:
            files = ", ".join(path.name for path in found)
            parts.append(textwrap.fill(f"Files in hparams: {files}", WIDTH))
    return "\n\n".join(
        [*parts, f"Options of SpeechBrain:\n{_run_options(keys)}"]
    )


def keys_of(text: str) -> str:
    """Lists the keys of a YAML with their defaults and comments as options.

    Below a key are the arguments of its object. Headings are those of the file.

    Example
    -------
    >>> print(keys_of("# Data\\nfolder: !PLACEHOLDER # audio\\nsize: 4\\n"))
    Data
      --folder VALUE (required) # audio
      --size 4
    """
    lines, hidden = [], False
    for line in text.splitlines():
        key = KEY.match(line)
        if key:
            name, value = key.group(1), key.group(2).strip()
            # what the file runs by itself is no setting
            hidden = value.startswith("!apply")
            value = value.replace("!PLACEHOLDER", "VALUE (required)")
            line = f"  --{name} {value}".rstrip()
        elif line.startswith("#"):
            heading = line.strip("# ")
            line, hidden = heading, not heading
        elif line.strip():
            line = f"      {line}"
        else:
            hidden = False
        if not hidden:
            lines.append(line)
    return re.sub(r"\n{3,}", "\n\n", "\n".join(lines)).strip("\n")


def _run_options(keys):
    """Run options with default and help, without those that are keys."""
    # the module alone: importing the package would import torch
    package: Any = importlib.util.find_spec("speechbrain")
    folder = pathlib.Path(package.submodule_search_locations[0])
    path = folder / "utils" / "run_opts.py"
    spec: Any = importlib.util.spec_from_file_location("run_opts", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    fields = module.RunOptions.__dataclass_fields__
    lines = []
    for name, text in module.HELP_TEXTS.items():
        if name in REFUSED or name in keys:
            continue
        text = CORRECTED.get(name, text)
        default = fields[name].default
        value = "" if default is False else f" {default}"
        lines.append(f"  --{name}{value}")
        lines += textwrap.wrap(
            text, WIDTH, initial_indent="      ", subsequent_indent="      "
        )
    return "\n".join(lines)
