"""Runs the recipes of the checkout, or those that the wheel brings along.

    > speechbrain-ssl recipe list
    > speechbrain-ssl recipe copy audiofolder my_recipe

A copy is complete: its scripts run as ``python train_ssl.py hparams/x.yaml``.
"""

import difflib
import pathlib
import re
import runpy
import shutil
import sys

from speechbrain_ssl import shipped
from speechbrain_ssl.help import command_parser, one_line

# a key at the left margin that only YAMLs of this script have
SCRIPT_OF_KEY = {
    "pseudo_labels": "train_pseudo_labels.py",
    "speakers": "train_supervised.py",
    "objective": "train_ssl.py",
}


def folder() -> pathlib.Path:
    """``recipes`` of the checkout, or the copy in the installed package."""
    return shipped.folder("recipes")


def names() -> dict[str, pathlib.Path]:
    """The YAMLs that ``train`` knows by name.

    ``moco`` is that of AudioFolder, ``voxceleb/moco`` that of VoxCeleb.
    """
    found = {}
    for path in sorted(folder().glob("*/SSL/hparams/train_*.yaml")):
        corpus = path.parts[-4].lower()
        prefix = "" if corpus == "audiofolder" else f"{corpus}/"
        found[prefix + path.stem.removeprefix("train_")] = path
    return found


def train(argv: list[str]) -> None:
    """Trains by a YAML, named or by its path, with the script for it."""
    if not argv or argv[0] in ("-h", "--help"):
        print(
            "usage: speechbrain-ssl train YAML [--key value ...]\n\nYAML is a "
            f"path or one of: {', '.join(names())}"
        )
        return
    hparams = names().get(argv[0], pathlib.Path(argv[0]))
    if not hparams.is_file():
        close = difflib.get_close_matches(argv[0], names(), 1)
        hint = f" Did you mean {close[0]}?" if close else ""
        sys.exit(
            f"speechbrain-ssl train: {argv[0]} is no file and no name of a "
            f"YAML.{hint} The names are: {', '.join(names())}"
        )
    text = hparams.read_text(encoding="utf-8")
    for key, script in SCRIPT_OF_KEY.items():
        if re.search(rf"^{key}:", text, re.MULTILINE):
            break
    else:
        sys.exit(
            f"speechbrain-ssl train: {hparams} has none of the keys "
            f"{', '.join(SCRIPT_OF_KEY)}, which tell the script to run it "
            "with. Run that script directly."
        )
    beside = hparams.resolve().parents[1] / script
    default = folder() / "AudioFolder/SSL" / script
    run(beside if beside.is_file() else default, str(hparams), argv[1:])


def adapt(argv: list[str]) -> None:
    """Adapts an encoder, see ``recipes/AudioFolder/Adapt/adapt.py``."""
    script = folder() / "AudioFolder/Adapt/adapt.py"
    places, rest = argv[:2], argv[2:]
    if {"-h", "--help"} & set(argv):
        places, rest = [], ["--help"]
    elif len(places) < 2 or any(x.startswith("-") for x in places):
        sys.exit(
            "usage: speechbrain-ssl adapt SOURCE AUDIO [--output_folder OUT] "
            "[--key value ...]\n--help lists the keys."
        )
    names = ("source", "data_folder")
    given = [f"--{name}={place}" for name, place in zip(names, places)]
    run(script, "adapt.yaml", [*given, *rest])


def run(script: pathlib.Path, hparams: str | None, argv: list[str]) -> None:
    """Runs a recipe's script in this process.

    ``hparams`` is the path of its YAML, or its name in ``hparams`` beside the
    script; not used if ``argv`` begins with another one. None: it needs no
    YAML.
    """
    first = argv[0] if argv else ""
    is_given = first.endswith(".yaml") and not first.startswith("-")
    if hparams is not None and not is_given:
        path = pathlib.Path(hparams)
        if not path.is_file():
            path = script.parent / "hparams" / hparams
        argv = [str(path), *argv]
    sys.argv = [str(script), *argv]
    # a script imports the preparation beside it
    sys.path.insert(0, str(script.parent))
    runpy.run_path(str(script), run_name="__main__")


def copy(corpus: str, output_folder: str) -> pathlib.Path:
    """Copies a recipe, to change its YAMLs and scripts.

    ``corpus`` is ``audiofolder``, ``voxceleb`` or ``audiofolder/adapt``. The
    output folder must not exist yet.
    """
    known = {path.parent.name.lower(): path for path in folder().glob("*/SSL")}
    for path in folder().glob("*/Adapt"):
        known[f"{path.parent.name.lower()}/adapt"] = path
    if corpus.lower() not in known:
        raise ValueError(
            f"There is no recipe {corpus!r}; there are {', '.join(sorted(known))}."
        )
    target = pathlib.Path(output_folder)
    if target.exists():
        raise FileExistsError(f"{target} exists. Name a new folder.")
    # links to the other recipe's scripts become files
    shutil.copytree(
        known[corpus.lower()],
        target,
        ignore=shutil.ignore_patterns("__pycache__", "results"),
    )
    return target


def main(argv: list[str] | None = None) -> None:
    """The command line of ``recipe``."""
    parser = command_parser(__doc__, prog="speechbrain-ssl recipe")
    commands = parser.add_subparsers(dest="command", required=True)
    commands.add_parser("list", help="names of the YAMLs for train")
    copying = commands.add_parser("copy", help="write a recipe out")
    copying.add_argument(
        "corpus", help="audiofolder, voxceleb or audiofolder/adapt"
    )
    copying.add_argument("output_folder")
    args = parser.parse_args(argv)
    if args.command == "list":
        for name, path in names().items():
            print(f"{name:<24} {path}")
        return
    with one_line("recipe"):
        print(copy(args.corpus, args.output_folder))
