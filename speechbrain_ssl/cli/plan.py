"""What a training, or all stages of rounds, will take: ``speechbrain-ssl plan``.

    > speechbrain-ssl plan recipes/VoxCeleb/SSL/hparams/rounds.yaml \
        --hours 2360 --gpus 8 --rates rates.json

Steps follow from the YAML. Times and memory are those that
``benchmarks/rates.py`` has measured on the machine in question and written to
``rates.json``; what was not measured is not guessed. Files are read as often
as utterances are trained on, since each is opened for its segments.
"""

import argparse
import json
import pathlib
import re
from typing import Any

from speechbrain_ssl.checks import check_keys, number, whole
from speechbrain_ssl.cli import recipes
from speechbrain_ssl.files import read_json
from speechbrain_ssl.help import one_line
from speechbrain_ssl.nnet.schedules import lr_factor
from speechbrain_ssl.options import (
    ENCODER_FILE,
    overrides_of,
    run_option_types,
    settings_of,
)

SECONDS = 7.8  # mean duration of an utterance of VoxCeleb2
BYTES_PER_SAMPLE = 2
COLUMNS = {
    "stage": "stage",
    "steps": "steps",
    "learning_rate": "lr",
    "hours": "hours",
    "memory_gb": "GB per GPU",
    "disk_gb": "GB of disk",
    "files_per_second": "files/s",
}


def plain(settings: dict, key: str) -> Any:
    """A value of a YAML, with references to other keys followed, or None.

    Example
    -------
    >>> plain({"dim": 4, "size": ["!ref", "<dim>"]}, "size")
    4
    """
    value = settings.get(key)
    if isinstance(value, list) and len(value) == 2 and value[0] == "!ref":
        found = re.fullmatch(r"<(\w+)>", str(value[1]))
        return plain(settings, found.group(1)) if found else None
    return value


def argument(settings: dict, key: str, name: str) -> Any:
    """An argument of the object that a key is made of, or None."""
    value = settings.get(key)
    if isinstance(value, list) and isinstance(value[-1], dict):
        return plain({**settings, **value[-1]}, name)
    return None


def plan_training(
    name: str, settings: dict, corpus: dict, rate: dict | None
) -> dict:
    """Steps and costs of one training, a value for each of ``COLUMNS``.

    ``corpus`` has ``utterances``, ``hours``, ``gpus`` and ``accumulation``;
    ``rate`` is what was measured of the YAML, None if nothing was: then costs
    are None.
    """
    batch, gpus = plain(settings, "batch_size"), corpus["gpus"]
    epochs = plain(settings, "number_of_epochs")
    counts = {"batch_size": batch, "number_of_epochs": epochs}
    check_keys(counts, **dict.fromkeys(counts, whole(1)))
    per_epoch = corpus["utterances"] // (batch * gpus)
    if per_epoch == 0:
        raise ValueError(
            f"{name}: {corpus['utterances']} utterances do not fill one step "
            f"of {gpus} x {batch}. Lower batch_size or gpus."
        )
    steps = -(-per_epoch // corpus["accumulation"]) * epochs
    lr = argument(settings, "opt_class", "lr")
    scale = lr_factor(
        settings.get("lr_for", "none"),
        batch * gpus * corpus["accumulation"],
        plain(settings, "reference_batch"),
    )
    row = {
        "stage": name,
        "steps": steps,
        "epochs": epochs,
        "utterances_in_a_step": batch * gpus * corpus["accumulation"],
        "learning_rate": None if lr is None else float(lr) * scale,
        **dict.fromkeys(("hours", "memory_gb", "disk_gb", "files_per_second")),
    }
    if rate is None:
        return row
    per_second = rate["utterances_per_second"] * gpus
    kept = rate["kept_bytes_per_utterance"] * batch
    row["hours"] = per_epoch * batch * gpus * epochs / per_second / 3600
    row["memory_gb"] = (rate["state_bytes"] + kept) / 1e9
    checkpoints = plain(settings, "checkpoints_to_keep") + 1
    row["disk_gb"] = checkpoints * rate["checkpoint_bytes"] / 1e9
    row["files_per_second"] = per_second
    return row


def plan_labels(
    name: str, settings: dict, corpus: dict, rate: dict | None
) -> dict:
    """Costs of extraction and clustering, as ``plan_training`` gives them.

    ``rate`` was measured of the encoder's training; hours are those of the
    extraction.
    """
    row = {"stage": name, **dict.fromkeys(COLUMNS.keys() - {"stage"})}
    if rate is None:
        return row
    seconds = corpus["hours"] * 3600 / corpus["utterances"]
    longest = plain(settings, "max_seconds") or seconds
    speed = rate["embedded_seconds_per_second"] * corpus["gpus"]
    audio = min(seconds, longest) * corpus["utterances"]
    row["hours"] = audio / speed / 3600
    width = 2 if settings.get("embeddings_dtype") == "float16" else 4
    row["disk_gb"] = corpus["utterances"] * rate["emb_dim"] * width / 1e9
    row["files_per_second"] = corpus["utterances"] / (audio / speed)
    return row


def plan(
    hparams: pathlib.Path, corpus: dict, rates: dict, changes: str = ""
) -> list[dict]:
    """Rows of a YAML: one of a training, or one of each stage of rounds.

    ``rates`` were measured, by the names of YAMLs; ``changes`` of the YAML are
    YAML.
    """
    settings = settings_of(str(hparams), changes)
    if unknown := settings.keys() - settings_of(str(hparams)).keys():
        raise ValueError(f"{hparams} has no key {min(unknown)!r}")
    if "rounds" not in settings:
        rate = rates.get(hparams.stem)
        return [plan_training(hparams.stem, settings, corpus, rate)]
    rows, folder = [], hparams.parent.parent

    def stage(key):
        path = folder / settings[key]["hparams"]
        changes = dict(settings[key]["changes"])
        other = changes.pop(ENCODER_FILE.lstrip("-"), None)
        values = settings_of(str(path), overrides_of(changes))
        known = {*settings_of(str(path)), *run_option_types()}
        if unknown := values.keys() - known:
            raise ValueError(f"{key}: {path} has no key {min(unknown)!r}")
        # rates are measured with the encoder of the YAML
        name = path.stem + (f" with {other}" if other else "")
        return name, values

    trainings = {key: stage(key) for key in ("ssl", "train")}
    encoder = None
    if settings["model_folder"] is None and settings["embeddings"] is None:
        encoder, values = trainings["ssl"]
        name = f"start: {encoder}"
        rows.append(plan_training(name, values, corpus, rates.get(encoder)))
    if "ssl_face" in settings and settings["face_model_folder"] is None:
        face, values = stage("ssl_face")
        rows.append(
            plan_training(f"start: {face}", values, corpus, rates.get(face))
        )
    for count in range(1, settings["rounds"] + 1):
        name, values = stage("labels")
        name = f"round {count}: {name}"
        rate = rates.get(encoder)
        rows.append(plan_labels(name, values, corpus, rate))
        encoder, values = trainings["train"]
        name = f"round {count}: {encoder}"
        rows.append(plan_training(name, values, corpus, rates.get(encoder)))
    return rows


def read_rates(path: str | None, device: str | None) -> dict:
    """Measured rates by the names of YAMLs; empty without a file.

    With ``device`` None, the file must have rates of one device.
    """
    if path is None:
        return {}
    records = read_json(path)
    try:
        devices = sorted({record["device"] for record in records})
    except (KeyError, TypeError) as error:
        raise ValueError(f"{path} is no file of benchmarks/rates.py") from error
    chosen = [d for d in devices if device in (None, d)]
    if len(chosen) != 1:
        raise ValueError(
            f"{path} has rates of {', '.join(devices) or 'no device'}: name "
            "one of them as --device"
        )
    return {r["hparams"]: r for r in records if r["device"] == chosen[0]}


def table(rows: list[dict]) -> str:
    """Rows as a Markdown table, with a sum of the hours."""

    def shown(value):
        if value is None:
            return "-"
        return f"{value:.3g}" if isinstance(value, float) else str(value)

    lines = [list(COLUMNS.values())]
    lines += [[shown(row[name]) for name in COLUMNS] for row in rows]
    if len(rows) > 1 and all(row["hours"] is not None for row in rows):
        total = shown(sum(row["hours"] for row in rows))
        lines.append(["all", "", "", total, "", "", ""])
    widths = [max(map(len, column)) for column in zip(*lines)]
    lines.insert(1, ["-" * width for width in widths])
    return "\n".join(
        "| " + " | ".join(map(str.ljust, line, widths)) + " |" for line in lines
    )


def main(argv: list[str] | None = None) -> None:
    """The command line."""
    parser = argparse.ArgumentParser(
        prog="speechbrain-ssl plan",
        description="Steps, hours, memory, disk and files per second.",
        epilog="Further arguments change the YAML: --batch_size 32.",
        allow_abbrev=False,
    )
    parser.add_argument(
        "hparams", help="a YAML of a training or of rounds, or its name"
    )
    parser.add_argument("--hours", type=float, required=True, help="of audio")
    parser.add_argument(
        "--utterances", type=int, help=f"default: one for {SECONDS} s of audio"
    )
    parser.add_argument("--gpus", type=int, default=1, help="processes")
    parser.add_argument("--grad_accumulation_factor", type=int, default=1)
    parser.add_argument("--rates", help="file of benchmarks/rates.py")
    parser.add_argument("--device", help="whose rates to take")
    parser.add_argument("--json", action="store_true")
    args, further = parser.parse_known_args(argv)
    with one_line("plan"):
        _print_plan(args, further)


def _print_plan(args, further):
    """The table, or JSON, of a command line."""
    corpus = {
        "hours": args.hours,
        "utterances": args.utterances,
        "gpus": args.gpus,
        "accumulation": args.grad_accumulation_factor,
    }
    counts = dict.fromkeys(("gpus", "accumulation"), whole(1))
    check_keys(corpus, hours=number(above=0, below=1e9), **counts)
    if args.utterances is None:
        corpus["utterances"] = round(args.hours * 3600 / SECONDS)
    else:
        check_keys(corpus, utterances=whole(1))
    path = pathlib.Path(args.hparams)
    if not path.is_file():
        known = recipes.names()
        if args.hparams not in known:
            raise FileNotFoundError(
                f"There is no file {args.hparams}, and no training of that "
                f"name; there are {', '.join(sorted(known))}."
            )
        path = known[args.hparams]
    rates = read_rates(args.rates, args.device)
    rows = plan(path, corpus, rates, as_yaml(further))
    if args.json:
        print(json.dumps(rows, indent=2))
        return
    rate = plain(settings_of(str(path)), "sample_rate") or 16000
    audio = args.hours * 3600 * rate * BYTES_PER_SAMPLE / 1e9
    print(table(rows))
    print(
        f"\n{corpus['utterances']} utterances; {audio:.0f} GB as 16-bit wav at "
        f"{rate} Hz."
    )
    if any(row["hours"] is None for row in rows):
        print(
            "-: not measured. On the machine in question: python "
            "benchmarks/rates.py YAML --out rates.json"
        )


def as_yaml(words: list[str]) -> str:
    """Overrides of a command line, ``--key=value`` or ``--key value``, as YAML.

    Example
    -------
    >>> as_yaml(["--batch_size", "32", "--number_of_epochs=5"])
    'batch_size: 32\\nnumber_of_epochs: 5'
    """
    lines, words = [], list(words)
    while words:
        key, is_given, value = words.pop(0).partition("=")
        if not key.startswith("--") or not (is_given or words):
            raise ValueError(f"plan does not understand {key!r}")
        lines.append(f"{key[2:]}: {value if is_given else words.pop(0)}")
    return "\n".join(lines)
