"""Makes a reference of the YAML keys from the comments in the YAMLs."""

import pathlib
import re

SCRIPTS = {
    "train_ssl.py": "objective",
    "train_pseudo_labels.py": "pseudo_labels",
    "train_supervised.py": "speakers",
    "make_pseudo_labels.py": None,
    "run_rounds.py": None,
    "verify.py": None,
    "adapt.py": None,
}
SINGLE = {
    "make_pseudo_labels.py": ("pseudo_labels.yaml",),
    "run_rounds.py": ("rounds.yaml", "rounds_av.yaml"),
    "verify.py": ("verify.yaml",),
    "adapt.py": ("adapt.yaml",),
}
KEY = re.compile(r"^([a-z]\w*): *(.*)$")


def read(path):
    """Keys at the left margin of a YAML.

    Arguments
    ---------
    path : pathlib.Path
        The YAML.

    Returns
    -------
    dict of str to tuple
        Default (as written, without the settings below it) and comment.
    """
    found = {}
    for line in path.read_text(encoding="utf-8").splitlines():
        match = KEY.match(line)
        if match:
            value, _, comment = match[2].partition(" # ")
            found[match[1]] = value.strip(), comment.strip()
    return found


def table(paths):
    """Rows of all keys of the YAMLs of one script.

    Arguments
    ---------
    paths : list of pathlib.Path
        The YAMLs.

    Returns
    -------
    list of str
        Lines of a Markdown table: key, default or defaults, meaning.
    """
    files = [read(path) for path in paths]
    lines = ["| key | default | meaning |", "| --- | --- | --- |"]
    for key in dict.fromkeys(key for file in files for key in file):
        values = [file[key][0] for file in files if key in file]
        kinds = list(dict.fromkeys(value for value in values if value))
        shown = f"`{kinds[0]}`" if len(kinds) == 1 else "differs"
        if not kinds:
            shown = "a list or mapping"
        comments = [file[key][1] for file in files if key in file]
        meaning = max(comments, key=len).replace("|", "\\|")
        lines.append(
            f"| `{key}` | {shown.replace('|', chr(92) + '|')} | {meaning} |"
        )
    return lines


def write(recipes, folder):
    """Writes one page for each script.

    Arguments
    ---------
    recipes : pathlib.Path
        The folder of recipes.
    folder : pathlib.Path
        For the pages; made if missing.
    """
    hparams = sorted((recipes / "AudioFolder").glob("*/hparams/*.yaml"))
    folder.mkdir(exist_ok=True)
    names = []
    for script, mark in SCRIPTS.items():
        own = SINGLE.get(script, ())
        paths = [path for path in hparams if path.name in own]
        if mark is not None:
            paths = [
                path
                for path in hparams
                if path.stem.startswith("train_") and mark in read(path)
            ]
            if mark == "pseudo_labels":
                paths = [p for p in paths if "speakers" not in read(p)]
        name = script.removesuffix(".py")
        names.append(name)
        text = [
            f"# Keys of {script}",
            "",
            f"Of {', '.join(f'`{path.name}`' for path in paths)}. "
            "The YAML itself shows the settings below a key.",
            "",
            *table(paths),
        ]
        (folder / f"{name}.md").write_text("\n".join(text) + "\n")
    index = [
        "# YAML keys",
        "",
        "All keys of the AudioFolder recipe. The VoxCeleb recipe has the same",
        "keys with other values. `python SCRIPT YAML --help` prints them too.",
        "",
        "```{toctree}",
        *names,
        "```",
    ]
    (folder / "index.md").write_text("\n".join(index) + "\n")


if __name__ == "__main__":
    root = pathlib.Path(__file__).resolve().parents[1]
    write(root / "recipes", root / "docs/keys")
