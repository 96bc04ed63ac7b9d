"""Dispatches ``speechbrain-ssl COMMAND`` to the module or recipe behind it."""

import importlib
import os
import re
import sys

import speechbrain_ssl
from speechbrain_ssl.cli import recipes

# command: (module with a main(argv), what it does)
MODULES = {
    "embed": ("speechbrain_ssl.cli.embed", "embeddings of a folder of audio"),
    "pack": ("speechbrain_ssl.cli.pack", "audio files into tar shards"),
    "cuts": ("speechbrain_ssl.cli.cuts", "cuts of Lhotse to a training CSV"),
    "segment": ("speechbrain_ssl.cli.segment", "speech in long recordings"),
    "score": ("speechbrain_ssl.cli.score", "compare recordings, in pairs"),
    "enrol": ("speechbrain_ssl.cli.enrol", "add a speaker to a folder"),
    "identify": ("speechbrain_ssl.cli.identify", "find an enrolled speaker"),
    "demo-page": ("speechbrain_ssl.cli.page", "a page that compares audio"),
    "fuse": ("speechbrain_ssl.cli.fuse", "fuse the scores of several models"),
    "selfcheck": ("speechbrain_ssl.cli.selfcheck", "rank models, no labels"),
    "export": ("speechbrain_ssl.exporting", "a run to a model folder"),
    "onnx": ("speechbrain_ssl.onnx", "a model folder to an ONNX file"),
    "push": ("speechbrain_ssl.push", "a model folder to the Hugging Face hub"),
    "report": ("speechbrain_ssl.report.page", "the HTML page of a run"),
    "plan": ("speechbrain_ssl.cli.plan", "steps, hours, memory of a training"),
    "doctor": ("speechbrain_ssl.cli.doctor", "versions, devices, extras"),
    "recipe": ("speechbrain_ssl.cli.recipes", "list or copy the recipes"),
}
# command: (script, its YAML, what it does)
SCRIPTS = {
    "labels": (
        "make_pseudo_labels.py",
        "pseudo_labels.yaml",
        "cluster embeddings into pseudo-labels",
    ),
    "rounds": ("run_rounds.py", "rounds.yaml", "rounds of labels and training"),
    "verify": ("verify.py", "verify.yaml", "error rates on trial lists"),
    "prepare": (
        "corpora_prepare.py",
        None,
        "annotation and trial lists of known corpora",
    ),
    "demo": ("demo.py", None, "train, verify and report in some minutes"),
}
USAGE = """usage: speechbrain-ssl COMMAND [arguments]

  train     train by a YAML, named or by its path:
            speechbrain-ssl train moco --data_folder /audio
  adapt     adapt a trained encoder to a folder of unlabelled audio:
            speechbrain-ssl adapt SOURCE AUDIO --output_folder OUT
{commands}

speechbrain-ssl COMMAND --help describes the arguments of a command,
speechbrain-ssl recipe list names the YAMLs, --version prints the version.
"""


def usage() -> str:
    """The help text of all commands."""
    lines = {name: text for name, (*_, text) in {**SCRIPTS, **MODULES}.items()}
    commands = "\n".join(f"  {name:<9} {text}" for name, text in lines.items())
    return USAGE.format(commands=commands)


def main(argv: list[str] | None = None) -> int:
    """Runs a command, ``sys.argv[1:]`` by default; gives the exit status."""
    argv = sys.argv[1:] if argv is None else argv
    command, *rest = argv or ["--help"]
    # which shells leave as it is; a folder called ~ would be made
    home = os.path.expanduser("~/")
    rest = [re.sub(r"^(--\w+=)~/", lambda m: m[1] + home, x) for x in rest]
    if command in ("-h", "--help"):
        print(usage(), end="")
    elif command == "--version":
        print(f"speechbrain_ssl {speechbrain_ssl.__version__}")
    elif command == "train":
        recipes.train(rest)
    elif command == "adapt":
        recipes.adapt(rest)
    elif command in SCRIPTS:
        script, hparams, _ = SCRIPTS[command]
        recipes.run(
            recipes.folder() / "AudioFolder/SSL" / script, hparams, rest
        )
    elif command in MODULES:
        importlib.import_module(MODULES[command][0]).main(rest)
    else:
        print(
            f"speechbrain-ssl: there is no command {command!r}.\n\n{usage()}",
            file=sys.stderr,
            end="",
        )
        return 2
    return 0
