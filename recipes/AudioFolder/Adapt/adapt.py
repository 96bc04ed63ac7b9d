r"""Adapts a trained speaker encoder to a folder of unlabelled audio.

To run this recipe::

    > python adapt.py hparams/adapt.yaml --data_folder /audio \
        --source speechbrain/spkrec-ecapa-voxceleb --output_folder OUT

or, from any folder, ``speechbrain-ssl adapt SOURCE AUDIO --output_folder OUT``.

SOURCE is an exported folder, a SpeechBrain folder of a speaker encoder, a
transformer (WavLM, HuBERT, wav2vec 2.0, w2v-BERT 2.0) whose pooling head is
trained first, their names on the Hugging Face hub, or the YAML of an encoder
with random weights. An ONNX file can be the teacher of the first round.

A share of the audio is kept out. Then rounds follow: embeddings are clustered,
and the encoder is trained on the clusters by train_pseudo_labels.py, always
from the weights of the source. The self-check, which needs no label, compares
the model of each round with the best one before on the audio that was kept
out. The first round that is not better ends the rounds. If none is better, the
source is kept, and the last line says so.

``<output_folder>/model`` is the result, with its card and a threshold that was
found without labels; ``summary.json`` has all figures, ``rounds/rounds.html``
the rounds. Trial lists, if given, are read for the error rates before and
after. After a kill the same command goes on. Run options (``--device`` ...) are
handed on to all stages.
"""

import json
import logging
import os
import sys
from statistics import fmean

from speechbrain_ssl.help import answer_help

if __name__ == "__main__":
    answer_help(__doc__)  # before the slow imports

import torch
from audio_folder_prepare import prepare_audio_folder
from speechbrain_ssl import adaptation, hub, stages
from speechbrain_ssl.card import set_label_free_threshold, set_origin
from speechbrain_ssl.checks import check_keys, number, one_of, optional, whole
from speechbrain_ssl.cli import recipes
from speechbrain_ssl.cli.embed import embed
from speechbrain_ssl.dataio.annotations import read_annotation, write_annotation
from speechbrain_ssl.evaluation.selfcheck import SelfCheck, held_out
from speechbrain_ssl.evaluation.trials import (
    read_models,
    read_trials,
    trial_paths,
)
from speechbrain_ssl.evaluation.verification import compare, results_folder
from speechbrain_ssl.files import hash_of, read_json, write_json, write_whole
from speechbrain_ssl.loading import load_encoder
from speechbrain_ssl.options import (
    load_experiment,
    run_option_types,
    settings_of,
)
from speechbrain_ssl.pseudo_labels.extract import encoder_hash
from speechbrain_ssl.report.rounds import read_stage
from speechbrain_ssl.script import run_script
from speechbrain_ssl.stages import only_job, run_stage

from speechbrain.utils.distributed import infer_device

logger = logging.getLogger(__name__)

HERE = os.path.dirname(os.path.abspath(__file__))
SCRIPTS = str(recipes.folder() / "AudioFolder/SSL")
LABEL_USE = (
    "Speaker labels decided nothing: neither training, nor when to stop, nor "
    "which model is kept. Trial lists and true speakers, where given, are read "
    "for reports. The source may have been trained with labels."
)
# seconds of an utterance that the teacher embeds, as in pseudo_labels.yaml
TEACHER_SECONDS = 20.0
# most draws of the self-check, and the figures that are means over them
DRAWS = 4
AVERAGED = ["cross_entropy", "EER", "EER_low", "EER_high", "effective_rank"]
AVERAGED += ["agreement", "threshold", "threshold_augmented"]


def check_settings(hparams):
    """Finds mistakes in the settings before anything runs."""
    check_keys(
        hparams,
        seed=whole(0, 2**32 - 1),
        offline=one_of(True, False),
        min_seconds=number(0),
        selfcheck_share=number(above=0, below=1),
        rounds=whole(1),
        source_share=number(0, below=1),
        min_gain=number(0),
        stop_agreement=optional(number()),
        processes=whole(1),
        selfcheck_count=whole(20),
        selfcheck_seconds=number(above=0),
        false_acceptance=number(above=0, below=0.5),
    )
    check_keys(hparams["lora"], rank=whole(0), alpha=number(above=0))
    for key in ("data_folder", "train_annotation", "truth"):
        path = hparams[key]
        if path is not None and not os.path.exists(path):
            raise FileNotFoundError(f"There is no {path} ({key}).")
    lists = trial_lists(hparams)
    stems = [os.path.splitext(os.path.basename(path))[0] for path in lists]
    if len(set(stems)) < len(stems):
        raise ValueError(
            "trials and other_trials: expected lists with different file "
            f"names, found {', '.join(stems)}. Rename one."
        )
    changes = hparams["verify"]["changes"]
    models = changes.get("enrolment")
    models = None if models is None else read_models(models)
    for path in lists:
        trials = read_trials(path, need_labels=True)
        trial_paths(trials, path, changes.get("data_root"), models)
    files = {key: hparams_file(hparams[key]) for key in ("head", "train")}
    for name, yaml in (("labels", "pseudo_labels"), ("verify", "verify")):
        files[name] = os.path.join(SCRIPTS, "hparams", f"{yaml}.yaml")
    for name, file in files.items():
        known = {*settings_of(file), *run_option_types()}
        if unknown := hparams[name]["changes"].keys() - known:
            raise ValueError(f"{name}: {file} has no key {min(unknown)!r}")


def trial_lists(hparams):
    """Paths of all trial lists; a key may have one path or several."""
    given = hparams["trials"], hparams["other_trials"]
    return [
        path
        for paths in given
        for path in ([paths] if isinstance(paths, str) else paths)
    ]


def hparams_file(spec):
    """The YAML of a stage, whose path starts here."""
    return os.path.join(HERE, spec["hparams"])


def flags_of(settings):
    """Settings as options of a command line."""
    return [
        f"--{key}={value if isinstance(value, str) else json.dumps(value)}"
        for key, value in settings.items()
    ]


class Job:
    """The settings of an adaptation, its folder and its lock.

    Arguments
    ---------
    hparams : dict
        The loaded hparams file.
    options : dict
        Run options that were given.
    device : str
        Where to embed in this process.
    lock : io.IOBase
        Of the output folder.
    """

    def __init__(self, hparams, options, device, lock):
        self.hparams, self.options = hparams, options
        self.device, self.lock = device, lock
        self.data_folder = os.path.abspath(hparams["data_folder"])
        self.train = self.place("data", "train.csv")
        self.held = self.place("data", "held_out.csv")
        self.encoder = self.place("start", "encoder", "model")
        self.source_share = 0.0  # of random weights there is nothing to keep

    def place(self, *names):
        """A path in the output folder."""
        return os.path.join(
            os.path.abspath(self.hparams["output_folder"]), *names
        )

    def command(self, script, file, settings):
        """The command line of a script of the recipe for training."""
        path = os.path.join(SCRIPTS, script)
        flags = flags_of({**self.options, **settings})
        return [sys.executable, path, file, *flags]

    def run(self, folder, script, file, settings, inputs):
        """Runs a script as a stage, unless it is done."""
        settings = {"output_folder": folder, **settings}
        command = self.command(script, file, settings)
        inputs = {**inputs, "hparams": settings_of(file)}

        def work():
            print(f"*** {folder}", flush=True)
            return stages.run_command(command, folder, self.lock)

        run_stage(folder, inputs, work, command)


def list_audio(job):
    """Lists the audio, and keeps a share of it out of training."""
    hparams = job.hparams
    listed = hparams["train_annotation"]
    inputs = {
        "data_folder": job.data_folder,
        "min_seconds": hparams["min_seconds"],
        "selfcheck_share": hparams["selfcheck_share"],
    }
    if listed is not None:
        inputs["train_annotation"] = f"SHA-256 {hash_of(listed)}"

    def work():
        path = listed or job.place("data", "all.csv")
        if listed is None:
            prepare_audio_folder(
                job.data_folder, path, min_seconds=hparams["min_seconds"]
            )
        found = read_annotation(path, job.data_folder)
        held = held_out(found, hparams["selfcheck_share"])
        if held.all() or not held.any():
            raise ValueError(
                f"Of {len(found)} utterances, {held.sum()} are kept out by "
                f"selfcheck_share {hparams['selfcheck_share']}: change it"
            )
        kept, out = adaptation.split_rows(path, held)
        write_annotation(job.held, out)
        write_annotation(job.train, kept)

    run_stage(job.place("data"), inputs, work)


def find_source(job):
    """Finds the source; one of the hub is asked for once."""
    hparams = job.hparams
    asked = {"source": hparams["source"], "revision": hparams["revision"]}
    folder = job.place("start", "source")
    path = os.path.join(folder, "source.json")
    source = None
    if os.path.isfile(path):
        source = adaptation.Source(**read_json(path))
    if source is None or source.commit is None:
        source = adaptation.find_source(**asked, offline=hparams["offline"])
    found = {**asked, "files": adaptation.source_hash(source)}
    run_stage(folder, found, lambda: write_json(path, source._asdict()))
    return source


def train_head(job, source):
    """Trains the pooling of a transformer; returns a source that has one."""
    spec, folder = job.hparams["head"], job.place("start", "head")
    file, changes = hparams_file(spec), dict(spec["changes"])
    sizes = adaptation.transformer_sizes(source.path)
    settings = {
        "data_folder": job.data_folder,
        "transformer_source": source.path,
        "pooling": {**sizes, **changes.pop("pooling", {})},
        "train_annotation": job.train,
        "skip_prep": True,
        "seed": job.hparams["seed"],
        **shared_with(job, file),
        **changes,
    }
    inputs = {
        **settings,
        "train_annotation": f"SHA-256 {hash_of(job.train)}",
        "transformer_source": adaptation.source_hash(source),
    }
    job.run(folder, "train_ssl.py", file, settings, inputs)
    model = os.path.join(folder, "model")
    return source._replace(kind=adaptation.ENCODER, path=model)


def shared_with(job, file):
    """The settings of ``shared`` that a YAML has."""
    keys = settings_of(file)
    return {k: v for k, v in job.hparams["shared"].items() if k in keys}


def lora_of(hparams):
    """Settings of the adapters; None without adapters."""
    return hparams["lora"] if hparams["lora"]["rank"] else None


def write_start(job, source):
    """Writes the encoder to start from, and the YAML of its training."""
    hparams = job.hparams
    folder = job.place("start", "encoder")
    template = hparams_file(hparams["train"])
    given = {
        "trained": hparams["trained"],
        "lora": lora_of(hparams),
        "trust": hparams["trust"],
        "seed": hparams["seed"],
    }
    inputs = {
        "files": adaptation.source_hash(source),
        "template": settings_of(template),
        **given,
    }

    def work():
        adaptation.write_start(source, job.encoder, **given)
        with open(template, encoding="utf-8") as file:
            text = adaptation.training_yaml(file.read(), job.encoder)
        with write_whole(job.place("start", "train.yaml")) as file:
            file.write(text)

    run_stage(folder, inputs, work)


def embed_by_teacher(job):
    """Embeds the training set by the teacher; returns the folder."""
    teacher, offline = job.hparams["teacher"], job.hparams["offline"]
    teacher = hub.fetch(teacher, offline=offline).folder
    folder = job.place("start", "teacher")
    target = os.path.join(folder, "embeddings")
    inputs = {
        "teacher": encoder_hash(teacher),
        "train_annotation": f"SHA-256 {hash_of(job.train)}",
    }

    def work():
        embed(
            teacher,
            job.train,
            target,
            data_root=job.data_folder,
            max_seconds=TEACHER_SECONDS,
            device=job.device,
            trust=job.hparams["trust"],
        )

    run_stage(folder, inputs, work)
    return target


def name_of(number):
    """Folder of the checks of a round; 0 is the source."""
    return f"round{number}" if number else "source"


def check_model(job, number, model):
    """Self-check of a model on the audio that was kept out.

    Few utterances are checked with up to ``DRAWS`` draws of parts and
    augmentation; the figures are means over the draws.
    """
    hparams, folder = job.hparams, job.place("checks", name_of(number))
    path = os.path.join(folder, "check.json")
    held = read_annotation(job.held, job.data_folder)
    draws = min(max(hparams["selfcheck_count"] // len(held), 1), DRAWS)
    settings = {
        "count": hparams["selfcheck_count"],
        "seconds": hparams["selfcheck_seconds"],
        "false_acceptance": hparams["false_acceptance"],
        "seed": hparams["seed"],
        **{
            key: hparams["shared"].get(key)
            for key in ("noise_folder", "rir_folder")
        },
    }
    inputs = {
        **settings,
        "draws": draws,
        "model": f"SHA-256 {encoder_hash(model)}",
        "held_out": f"SHA-256 {hash_of(job.held)}",
    }

    def work():
        encoder = load_encoder(model, job.device)
        rate = encoder.audio_normalizer.sample_rate
        found = []
        for draw in range(draws):
            seed = hparams["seed"] + draw
            check = SelfCheck(held, rate, **{**settings, "seed": seed})
            torch.manual_seed(seed)  # x-vectors add noise
            found.append(check(encoder.encode_batch, job.device))
        means = {key: fmean(x[key] for x in found) for key in AVERAGED}
        write_json(path, {**found[0], **means, "draws": draws})

    run_stage(folder, inputs, work)
    return read_json(path)


def run_round(job, number, embeddings):
    """Runs the rounds up to a number; returns what they report."""
    hparams, folder = job.hparams, job.place("rounds")
    changes = dict(hparams["train"]["changes"])
    settings = {
        "seed": hparams["seed"],
        "data_folder": job.data_folder,
        "output_folder": folder,
        "train_annotation": job.train,
        "rounds": number,
        "init": "start",
        "processes": hparams["processes"],
        "shared": hparams["shared"],
        "stop_agreement": hparams["stop_agreement"],
        "stop_growth": None,  # the self-check decides
        "truth": hparams["truth"],
    }
    if embeddings is None:
        settings["model_folder"] = job.encoder
    else:
        settings |= {"embeddings": embeddings, "init": "none"}
        changes["init_from"] = job.encoder
    settings["labels"] = {"changes": hparams["labels"]["changes"]}
    settings["train"] = {
        "hparams": job.place("start", "train.yaml"),
        "changes": changes,
    }
    file = os.path.join(SCRIPTS, "hparams", "rounds.yaml")
    command = job.command("run_rounds.py", file, settings)
    os.makedirs(folder, exist_ok=True)
    code = stages.run_command(command, folder, job.lock)
    if code:
        raise ChildProcessError(
            f"Round {number} ended with exit code {code}; see "
            f"{os.path.join(folder, stages.LOG)}. The same command goes on "
            "from here."
        )
    return read_json(os.path.join(folder, "summary.json"))


def mix_with_source(job, number, model):
    """The model of a round, with a share of the weights of the source."""
    share = job.source_share
    if not share:
        return model
    folder = job.place("mixed", f"round{number}")
    inputs = {
        "share": share,
        "model": f"SHA-256 {encoder_hash(model)}",
        "source": f"SHA-256 {encoder_hash(job.encoder)}",
    }
    mixed = os.path.join(folder, "model")
    mix = (model, job.encoder, share, mixed)
    run_stage(folder, inputs, lambda: adaptation.write_mean(*mix))
    return mixed


def run_rounds(job):
    """Runs rounds as long as they improve.

    Returns the models and their checks, the source first, the choice among
    them, and the report of the rounds.
    """
    embeddings = None
    if job.hparams["teacher"] is not None:
        embeddings = embed_by_teacher(job)
    models = [job.encoder]
    checks = [check_model(job, 0, job.encoder)]
    for count in range(1, job.hparams["rounds"] + 1):
        report = run_round(job, count, embeddings)
        done = [s["round"] for s in report["stages"] if s["stage"] == "train"]
        if count not in done:  # the labels are those of the round before
            break
        model = job.place("rounds", f"round{count}", "train", "model")
        models.append(mix_with_source(job, count, model))
        checks.append(check_model(job, count, models[-1]))
        choice = adaptation.choose(checks, job.hparams["min_gain"])
        print(choice.reason, flush=True)
        if choice.stop:
            break
    return models, checks, choice, report


def write_result(job, source, models, checks, choice, report):
    """Writes the model that is kept, with card and threshold."""
    hparams, best = job.hparams, choice.best
    lora, count = lora_of(hparams), len(checks) - 1
    train, held = (
        read_annotation(path, job.data_folder) for path in (job.train, job.held)
    )
    hours = train.durations.double().sum().item() / 3600
    clusters = [
        stage["clusters"]
        for stage in report["stages"]
        if stage["stage"] == "labels" and stage["round"] == best
    ]
    if best:
        objective = os.path.basename(hparams["train"]["hparams"])
        objective = f"pseudo-labels, {objective}"
        notes = (
            f"{source.name}, adapted to unlabelled audio by speechbrain_ssl: "
            f"round {best} of {count}."
        )
    else:
        objective = "that of the source"
        notes = (
            f"A copy of {source.name}: {count} rounds of adaptation to "
            "unlabelled audio did not improve it by the self-check without "
            "labels."
        )
    facts = {
        "source": " ".join(filter(None, [source.name, source.commit])),
        "license of the source": source.license or "unknown",
        "objective": objective,
        "data": f"{len(train)} utterances, {hours:.1f} hours without labels; "
        f"{len(held)} more for the self-check",
        "teacher of round 1": hparams["teacher"] or "the source",
        "pseudo-labels": f"{clusters[0]} clusters" if clusters else "none",
        "share of the source in the weights": f"{job.source_share:g}"
        if best
        else "1",
        "adapters": f"LoRA of rank {lora['rank']}" if lora else "none",
        "choice": choice.reason,
        "seed": hparams["seed"],
        "speaker labels": "none in the adaptation, in the choice of the model "
        "or in the threshold; the source may have been trained with labels",
    }
    inputs = {
        "model": f"SHA-256 {encoder_hash(models[best])}",
        "facts": facts,
        "check": checks[best],
    }
    target = job.place("model")

    def work():
        adaptation.write_result(models[best], target, notes, facts)
        set_origin(target, source.license, source.base_model)
        audio = os.path.basename(os.path.normpath(job.data_folder))
        set_label_free_threshold(target, checks[best], audio)

    # more rounds may follow later, and give another result
    run_stage(job.place("results", f"rounds{count}"), inputs, work)
    return target


def verify(job, number, model):
    """Error rates of a model on all lists; empty without lists."""
    hparams = job.hparams
    lists = trial_lists(hparams)
    if not lists:
        return {}
    folder = job.place("verification", name_of(number))
    settings = {
        "model_folder": model,
        "trials": [os.path.abspath(path) for path in lists],
        "write_threshold": False,
        **hparams["verify"]["changes"],
    }
    inputs = {
        **settings,
        "model_folder": f"SHA-256 {encoder_hash(model)}",
        "trials": [f"SHA-256 {hash_of(path)}" for path in lists],
    }
    file = os.path.join(SCRIPTS, "hparams", "verify.yaml")
    job.run(folder, "verify.py", file, settings, inputs)
    return read_stage(folder, 0, "verify")["lists"]


def differences(job, best):
    """What the adaptation changes on each list, with intervals."""
    folders = [job.place("verification", name_of(n)) for n in (0, best)]
    found = {}
    for path in trial_lists(job.hparams) if best else ():
        places = [results_folder(folder, path) for folder in folders]
        found[os.path.basename(places[0])] = compare(*places)
    return found


def summarize(job, source, checks, choice, report, model, before, after):
    """Writes summary.json and prints the outcome."""
    changes = differences(job, choice.best)
    summary = {
        "title": f"{source.name}, adapted to unlabelled audio",
        "source": source._asdict(),
        "outcome": choice.reason,
        "adapted": choice.best > 0,
        "round": choice.best,
        "model": model,
        "selfcheck": checks,
        "rounds": report["stages"],
        "before": before,
        "after": after,
        "differences": changes,
        "seed": job.hparams["seed"],
        "label_use": LABEL_USE,
    }
    write_json(job.place("summary.json"), summary)
    for name, found in before.items():
        line = " -> ".join(
            f"{rates['EER']:.2f} % [{rates['EER_low']:.1f}, "
            f"{rates['EER_high']:.1f}]"
            for rates in (found, after[name])
        )
        change = ""
        if name in changes:
            change = (
                "; difference {difference:+.2f} [{low:+.1f}, {high:+.1f}]"
            ).format_map(changes[name])
        print(f"{name}: EER {line}{change}")
    print(f"{choice.reason}\nModel: {model}")
    return summary


def main(argv):
    """Checks, runs the stages, writes the model; returns the summary."""
    _, run_opts, hparams, _ = load_experiment(argv)
    typed = {word.partition("=")[0] for word in argv}
    options = [name for name in run_option_types() if f"--{name}" in typed]
    options = {name: getattr(run_opts, name) for name in options}
    check_settings(hparams)
    device = run_opts["device"] or infer_device()
    with only_job(os.path.abspath(hparams["output_folder"])) as lock:
        job = Job(hparams, options, device, lock)
        start = source = find_source(job)
        if source.kind == adaptation.RANDOM and hparams["teacher"] is None:
            raise ValueError(
                f"{source.path} has random weights, whose embeddings make no "
                "labels. Give a teacher, or train it first: speechbrain-ssl "
                "train moco --data_folder AUDIO"
            )
        if source.kind != adaptation.RANDOM:
            job.source_share = hparams["source_share"]
        list_audio(job)
        if source.kind == adaptation.TRANSFORMER:
            start = train_head(job, source)
        write_start(job, start)
        before = verify(job, 0, job.encoder)
        models, checks, choice, report = run_rounds(job)
        model = write_result(job, source, models, checks, choice, report)
        after = verify(job, choice.best, models[choice.best])
        return summarize(
            job, source, checks, choice, report, model, before, after
        )


if __name__ == "__main__":
    run_script(main)
