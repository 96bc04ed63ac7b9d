r"""Labels from an encoder, training on them, labels from what came out, ...

To run this recipe::

    > python run_rounds.py hparams/rounds.yaml --data_folder /audio \
        --model_folder results/dino/1/model

Rounds start from an encoder, or from any embeddings of the audio, ``mfcc`` for
statistics of MFCCs without an encoder::

    > python run_rounds.py hparams/rounds.yaml --data_folder /audio \
        --embeddings mfcc --init previous

With faces beside the audio, ``hparams/rounds_av.yaml`` trains an encoder of
faces too (``start/ssl_face``), and all stages use both.

Each stage is a command with a folder of its own: ``start/verify``,
``round1/labels``, ``round1/train``, ``round1/verify``, ``round2/labels`` ...
After a kill the same command goes on: what is done (``stage.json`` says so)
is skipped, and the stage that was interrupted goes on from its own files. One
that was begun with other settings or inputs is refused.

``summary.json`` and ``rounds.html`` are written after each stage. Labels of
speakers or trials, if given, are read for these alone. Run options
(``--device`` ...) are handed on to all stages.
"""

import json
import logging
import os
import runpy
import shlex
import shutil
import sys
import tempfile
from typing import NamedTuple

from speechbrain_ssl.help import answer_help

if __name__ == "__main__":
    answer_help(__doc__)  # before the slow imports

from audio_folder_prepare import prepare_audio_folder
from speechbrain_ssl import hub
from speechbrain_ssl.checks import Rule, check_keys, number, optional, whole
from speechbrain_ssl.dataio import audio
from speechbrain_ssl.dataio.annotations import read_annotation
from speechbrain_ssl.files import hash_of
from speechbrain_ssl.loading import (
    check_folder,
    encoder_part,
    load_weights,
    start_from,
)
from speechbrain_ssl.nnet.onnx_encoder import is_onnx
from speechbrain_ssl.options import (
    ENCODER_FILE,
    load_experiment,
    run_option_types,
    settings_of,
)
from speechbrain_ssl.pseudo_labels import labels, statistics
from speechbrain_ssl.pseudo_labels.extract import encoder_hash, load
from speechbrain_ssl.report import rounds
from speechbrain_ssl.script import run_script
from speechbrain_ssl.stages import only_job, run_command, run_stage, torchrun

logger = logging.getLogger(__name__)

HERE = os.path.dirname(os.path.abspath(__file__))
# a link to this file in another recipe has that recipe's preparation beside it
sys.path.insert(0, HERE)
# of these settings not the path counts, but what is there
FILES = ("train_annotation", "previous", "pseudo_labels")
MODELS = ("model_folder", "init_from", "face_model_folder", "face_init_from")
# what a stage is run for
WEIGHTS = os.path.join("model", "embedding_model.ckpt")
RESULTS = {"ssl": WEIGHTS, "labels": labels.REPORT_NAME, "train": WEIGHTS}
RESULTS["ssl_face"] = WEIGHTS
# what the report repeats
SETTINGS = ["data_folder", "seed", "rounds", "init", "processes", "labels"]
SETTINGS += ["train", "stop_agreement", "stop_growth"]


class Stage(NamedTuple):
    """A command, and where its results go."""

    number: int  # round, from 1; 0 is before
    name: str  # ssl, ssl_face, labels, train or verify
    folder: str  # its output_folder
    spec: dict  # its script, hparams and changes of these
    flags: dict  # settings that come from here

    @property
    def hparams_file(self):
        """Its YAML, whose path starts in the recipe's folder."""
        return os.path.join(HERE, self.spec["hparams"])


def _is_command(value):
    """Whether the first word of a command is a program."""
    words = shlex.split(value)
    return bool(words) and shutil.which(words[0]) is not None


def check_settings(hparams):
    """Finds mistakes in the settings before anything runs."""
    check_keys(
        hparams,
        seed=whole(0),
        min_seconds=number(0),
        rounds=whole(1),
        processes=whole(1),
        launcher=optional(Rule(_is_command, "a command, such as torchrun")),
        stop_agreement=optional(number()),
        stop_growth=optional(number()),
    )
    if hparams["init"] not in ("start", "previous", "none"):
        raise ValueError(
            "init must be start (each round trains on from the first encoder), "
            "previous (from the last one) or none (from what the hparams file "
            f"of train says), not {hparams['init']!r}"
        )
    if not isinstance(hparams["trials"], list):
        raise ValueError("trials must be a list, such as [trials.txt]")
    embeddings = hparams["embeddings"]
    if embeddings is not None and hparams["model_folder"] is not None:
        raise ValueError(
            "embeddings and model_folder are two starts; give one of them"
        )
    if embeddings is not None and hparams["init"] == "start":
        raise ValueError(
            "init is start, but rounds that start from embeddings have no "
            "first encoder: set init to previous or none"
        )
    if hparams["init"] == "start" and is_onnx(hparams["model_folder"] or ""):
        raise ValueError(
            f"init is start, but {hparams['model_folder']} is an ONNX file, "
            "which cannot be trained: set init to previous or none"
        )
    for key in ("model_folder", "face_model_folder"):
        folder = hparams.get(key)
        if folder is not None and not is_onnx(folder):
            check_folder(hub.local_folder(folder))
    keys = ("data_folder", "train_annotation", "truth")
    paths = [*map(hparams.get, keys), *hparams["trials"]]
    if is_onnx(hparams["model_folder"] or ""):
        paths.append(hparams["model_folder"])
    if embeddings != statistics.NAME:
        paths.append(embeddings)
    for path in paths:
        known = path is None or audio.is_url(path)
        if not known and not os.path.exists(path):
            raise FileNotFoundError(f"There is no {path}")


def check_stages(stages, hparams):
    """Finds settings that the hparams files do not have."""
    for stage in stages:
        check_stage(stage)
    # a stage has the same settings in all rounds, but for its inputs
    firsts = {stage.name: stage for stage in reversed(stages)}
    made = {name: try_settings(stage) for name, stage in firsts.items()}
    if made["train"] is not None:
        check_starts(firsts["train"], made)
    for key in hparams["shared"]:
        if not any(key in {**s.flags, **s.spec["changes"]} for s in stages):
            raise ValueError(f"shared: no stage has a key {key!r}")


def check_stage(stage):
    """Finds settings that the hparams file of a stage does not have."""
    changes = stage.spec["changes"]
    known = {*settings_of(stage.hparams_file), *run_option_types()}
    if "embedding_model" in known:
        known.add(ENCODER_FILE.lstrip("-"))
    if unknown := {*stage.flags, *changes} - known:
        raise ValueError(f"{stage.hparams_file} has no key {min(unknown)!r}")
    if both := stage.flags.keys() & changes:
        raise ValueError(
            f"{stage.name}: {min(both)} is set by run_rounds.py; leave it out "
            "of the changes"
        )
    try:
        json.dumps(changes, allow_nan=False)
    except (TypeError, ValueError) as error:
        raise ValueError(
            f"{stage.name}: the changes must be plain values ({error}). Write "
            "an object as text: {clusterer: '!new:...'}"
        ) from error


def try_settings(stage):
    """Makes the objects of a stage, and checks them as its script does.

    Files that earlier stages will make are left out where scripts look for
    them. Gives the objects; None if the script has no checks.
    """
    with open(script_of(stage), encoding="utf-8") as file:
        checks = "\ndef check_settings(" in file.read()
    if not checks:
        return None
    given = {**stage.flags, **stage.spec["changes"]}
    for key in {"train_annotation", "previous"} & given.keys():
        if not os.path.exists(given[key]):
            given[key] = None
    with tempfile.TemporaryDirectory() as folder:
        given["output_folder"] = folder
        try:
            _, _, hparams, _ = load_experiment(
                [stage.hparams_file, *flags_of(given)]
            )
            runpy.run_path(script_of(stage))["check_settings"](hparams)
        except (ImportError, OSError, ValueError) as error:
            raise ValueError(f"Stage {stage.name}: {error}") from error
    return hparams


def check_starts(train, made):
    """Finds a first encoder whose weights are not of the encoder of training.

    ``made`` has the objects of the stages by their names.
    """
    for face in ("", "face_"):
        source = train.flags.get(f"{face}init_from")
        if source is None:
            continue
        branch = made["train"][f"{face}encoder"]
        first = "ssl_face" if face else "ssl"
        try:
            if os.path.isdir(source):
                start_from(branch, source)
            elif first in made:  # this stage will make it
                weights = encoder_part(made[first]["student"].state_dict())
                load_weights(branch.embedding_model, weights, f"stage {first}")
        except ValueError as error:
            raise ValueError(f"Stage train: {error}") from error


def script_of(stage):
    """Path of a stage's script."""
    return os.path.join(HERE, stage.spec["script"])


def flags_of(settings):
    """Settings as options of a command line."""
    return [
        f"--{key}={value if isinstance(value, str) else json.dumps(value)}"
        for key, value in settings.items()
    ]


def plan(hparams):
    """All stages in order, if nothing stops the rounds."""
    data = {"data_folder": hparams["data_folder"], "seed": hparams["seed"]}
    listed = {**data, "train_annotation": hparams["train_annotation"]}
    ssl = {**listed, "skip_prep": True}
    stages = []

    def add(number, name, spec, **flags):
        place = f"round{number}" if number else "start"
        folder = os.path.join(hparams["output_folder"], place, name)
        flags["output_folder"] = folder
        stage = Stage(number, name, folder, spec, flags)
        wanted = settings_of(stage.hparams_file).keys() - spec["changes"]
        offered = {**hparams["shared"], "round_index": number - 1}
        offered["trust"] = hparams["trust"]
        flags.update({k: v for k, v in offered.items() if k in wanted})
        stages.append(stage)
        return folder

    def add_model(number, model, face_model):
        inputs = {"model_folder": model, "trials": hparams["trials"]}
        inputs |= faces("face_model_folder", face_model)
        if hparams["trials"]:
            add(number, "verify", hparams["verify"], **inputs)
        return model

    def faces(key, face_model):
        return {} if face_model is None else {key: face_model}

    start = model = hparams["model_folder"]
    given = embeddings_folder(hparams)
    face_start = face_model = hparams.get("face_model_folder")
    if start is None and given is None:
        folder = add(0, "ssl", hparams["ssl"], **ssl)
        start = os.path.join(folder, "model")
    if "ssl_face" in hparams and face_start is None:
        folder = add(0, "ssl_face", hparams["ssl_face"], **ssl)
        face_start = face_model = os.path.join(folder, "model")
    if given is None:
        model = add_model(0, start, face_start)
    previous = {}
    for count in range(1, hparams["rounds"] + 1):
        inputs = {**listed, **previous}
        if model is None:
            inputs["embeddings_folder"] = given
        else:
            inputs["model_folder"] = model
        inputs |= faces("face_model_folder", face_model)
        folder = add(count, "labels", hparams["labels"], **inputs)
        previous = {"previous": os.path.join(folder, labels.CSV_NAME)}
        inputs = {**listed, "pseudo_labels": previous["previous"]}
        if hparams["init"] != "none" and model is not None:
            first = hparams["init"] == "start"
            if not is_onnx(model):  # it can be clustered, but not trained
                inputs["init_from"] = start if first else model
            inputs |= faces(
                "face_init_from", face_start if first else face_model
            )
        folder = add(count, "train", hparams["train"], **inputs)
        if face_model is not None:
            face_model = os.path.join(folder, "face_model")
        model = add_model(count, os.path.join(folder, "model"), face_model)
    return stages


def embeddings_folder(hparams):
    """Folder of the embeddings that rounds start from, or None."""
    if hparams["embeddings"] == statistics.NAME:
        root = hparams["output_folder"]
        return os.path.join(root, "start", statistics.NAME, "embeddings")
    return hparams["embeddings"]


def extract_statistics(hparams):
    """Makes embeddings of the audio without an encoder."""
    folder, path = embeddings_folder(hparams), hparams["train_annotation"]
    mark = os.path.dirname(folder)
    inputs = {"train_annotation": f"SHA-256 {hash_of(path)}"}

    def work():
        rows = read_annotation(path, hparams["data_folder"])
        statistics.extract_statistics(rows, folder)

    run_stage(mark, inputs, work)


def list_audio(hparams):
    """Lists the folder of audio once, for all rounds."""
    prepare = prepare_audio_folder
    if hparams.get("prepare"):  # of a recipe that knows its corpus
        prepare = hparams["prepare"]
    settings = {
        "data_folder": hparams["data_folder"],
        "min_seconds": hparams["min_seconds"],
    }
    inputs = {
        **settings,
        **{
            key: f"{value.__module__}.{value.__qualname__}"
            if callable(value)
            else value
            for key, value in getattr(prepare, "keywords", {}).items()
        },
    }
    path = hparams["train_annotation"]

    def work():
        prepare(save_csv=path, **settings)

    run_stage(os.path.dirname(path), inputs, work)


def inputs_of(stage, processes):
    """All that decides what a stage makes, to tell if it has changed."""
    inputs = {**stage.spec, "processes": processes}
    for key, value in settings_of(stage.hparams_file).items():
        inputs[f"hparams: {key}"] = value
    for key, value in stage.flags.items():
        if key in FILES:
            value = f"SHA-256 {hash_of(value)}"
        elif key == "trials":
            value = [f"SHA-256 {hash_of(path)}" for path in value]
        elif key in MODELS:
            value = f"SHA-256 {encoder_hash(value)}"
        elif key == "embeddings_folder":
            value = f"SHA-256 {load(value).meta['made']['embeddings']}"
        if key != "output_folder":
            inputs[f"--{key}"] = value
    return inputs


def command_of(stage, processes, options, launcher=None):
    """The command line of a stage."""
    given, launcher = launcher, [sys.executable]
    if stage.name == "verify":
        pass
    elif given:
        launcher = shlex.split(given)
    elif processes > 1:
        launcher = torchrun(processes)
    flags = {**options, **stage.flags, **stage.spec["changes"]}
    return [*launcher, script_of(stage), stage.hparams_file, *flags_of(flags)]


def run(stage, hparams, options, lock):
    """Runs a stage if it is not done; says whether it was run."""
    processes, launcher = hparams["processes"], hparams.get("launcher")
    command = command_of(stage, processes, options, launcher)
    inputs = inputs_of(stage, processes)

    def work():
        print(f"*** {stage.folder}", flush=True)
        code = run_command(command, stage.folder, lock)
        result = os.path.join(stage.folder, RESULTS.get(stage.name, ""))
        if code == 0 and not os.path.exists(result):
            raise FileNotFoundError(f"{stage.folder} did not make {result}")
        return code

    return run_stage(stage.folder, inputs, work, command)


def run_all(stages, hparams, options, lock):
    """Runs the stages until the rounds are over; reports after each."""
    limits = hparams["stop_agreement"], hparams["stop_growth"]
    truth, data_folder = hparams["truth"], hparams["data_folder"]
    rows, model, outcome = [], hparams["model_folder"], None
    for stage in stages:
        if stage.name in ("labels", "train"):
            outcome = rounds.why_stop(rows, *limits)
        if outcome:
            break
        is_new = run(stage, hparams, options, lock)
        place = (stage.folder, stage.number, stage.name)
        rows.append(rounds.read_stage(*place, truth, data_folder))
        if stage.name in ("ssl", "train"):
            model = os.path.join(stage.folder, "model")
        report(hparams, rows, model, f"{stage.folder} is done.", False)
        if is_new:
            print(rounds.text(rows), flush=True)
    outcome = outcome or f"All rounds are done: {hparams['rounds']}."
    page = report(hparams, rows, model, outcome, True)
    print(f"{rounds.text(rows)}\n{outcome}\nModel: {model}\nReport: {page}")
    return rows


def report(hparams, rows, model, outcome, finished):
    """Writes summary.json and rounds.html; returns the latter's path."""
    summary = {
        "title": "Rounds of pseudo-labels",
        "outcome": outcome,
        "finished": finished,
        "model": model,
        "settings": {key: hparams[key] for key in SETTINGS},
        "stages": rows,
    }
    return rounds.write_rounds(hparams["output_folder"], summary)


def with_places(hparams):
    """The settings with absolute paths, and with the training CSV."""
    keys = ["data_folder", "output_folder"]
    if hparams["embeddings"] not in (None, statistics.NAME):
        keys.append("embeddings")
    places = {key: audio.absolute(hparams[key]) for key in keys}
    for key in ("model_folder", "face_model_folder"):
        if hparams.get(key) is not None:  # one revision for all stages
            places[key] = hub.local_folder(hparams[key])
    if hparams["train_annotation"] is None:
        places["train_annotation"] = os.path.join(
            places["output_folder"], "data", "train.csv"
        )
    return {**hparams, **places}


def main(argv):
    """Checks, lists the audio, runs the rounds; returns a row per stage."""
    _, run_opts, hparams, _ = load_experiment(argv)
    typed = {word.partition("=")[0] for word in argv}
    options = [name for name in run_option_types() if f"--{name}" in typed]
    options = {name: getattr(run_opts, name) for name in options}
    check_settings(hparams)
    is_listed = hparams["train_annotation"] is not None
    hparams = with_places(hparams)
    data_folder, root = hparams["data_folder"], hparams["output_folder"]
    stages = plan(hparams)
    check_stages(stages, hparams)
    with only_job(root) as lock:
        if not is_listed:
            list_audio(hparams)
        if hparams["embeddings"] == statistics.NAME:
            extract_statistics(hparams)
        if hparams["truth"] is not None:  # a wrong file is found out now
            rows = read_annotation(hparams["train_annotation"], data_folder)
            labels.read_truth(hparams["truth"], list(rows.ids()))
        return run_all(stages, hparams, options, lock)


if __name__ == "__main__":
    run_script(main)
