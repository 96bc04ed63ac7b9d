"""The whole job in one command: audio without labels in, verified models out.

    > python demo.py --output_folder results/demo
    > python demo.py --data_folder /audio --trials /trials.txt --minutes 23

Without ``--data_folder`` it synthesises its own voices. It measures how long
a step takes here and chooses the number of epochs that fills the minutes. Then
come ``--rounds`` of pseudo-labels from that encoder and training on them, in the
folder ``rounds``. A round has a quarter of the epochs of the first training, or
30 if that is more, but never more than the first training. Further arguments go
to the hparams file; those about data, augmentation and encoder go to both stages.
Run again with the same arguments it continues where it was stopped.

Arguments::

    --output_folder results/demo
    --data_folder FOLDER    audio; else it synthesises voices
    --trials FILE [FILE]    lists to report error rates on
    --method simclr         hparams/train_METHOD.yaml
    --minutes 5             of the first training
    --rounds 1              of pseudo-labels
    --seed 1
    --batch_size N          of all processes; else that of the hparams file
    --processes N           that train together; else on a CPU 1, 2 or 4, not
                            more than cores, and one on a GPU
    --times FILE            only times steps of training on --data_folder in
                            this process, and writes FILE
"""

import argparse
import functools
import json
import logging
import math
import os
import platform
import runpy
import shlex
import tempfile

from speechbrain_ssl.help import answer_help, command_parser

if __name__ == "__main__":
    answer_help(__doc__, reads_yaml=False)  # before the slow imports

import torch
from audio_folder_prepare import prepare_audio_folder
from speechbrain_ssl import distributed
from speechbrain_ssl.brains import experiment
from speechbrain_ssl.card import suggest_threshold
from speechbrain_ssl.dataio.parallel import processors
from speechbrain_ssl.evaluation.trials import read_trials
from speechbrain_ssl.evaluation.verification import verify
from speechbrain_ssl.files import (
    read_json,
    read_jsonl,
    same_or_refuse,
    write_json,
)
from speechbrain_ssl.loading import load_encoder
from speechbrain_ssl.options import ENCODER, ENCODER_FILE, load_experiment
from speechbrain_ssl.report.page import write_report
from speechbrain_ssl.runtime import keep_memory
from speechbrain_ssl.script import run_script
from speechbrain_ssl.stages import LOG, only_job, run_command, torchrun
from synthesize_voices import synthesize_voices

import speechbrain as sb
from speechbrain.utils.distributed import infer_device

logger = logging.getLogger(__name__)
RECORD = "demo.json"
HERE = os.path.dirname(os.path.abspath(__file__))
TIMED_STEPS = 10
# of one process, for the statistics of BatchNorm
SMALLEST_BATCH = 16
# of the settings of the first stage, those that the second one needs as well
SHARED = ["batch_size", "num_workers", "sample_rate", "augmentation"]
SHARED += ["noise_folder", "music_folder", "rir_folder", "n_mels", "emb_dim"]
SHARED += ["compute_features", "mean_var_norm", "embedding_model"]
LABEL_USE = (
    "None in training or selection. The labels of the trial lists are used "
    "to report error rates and to color the map of embeddings."
)


def parse_arguments(argv):
    """Reads the command line; returns arguments and further overrides."""
    parser = command_parser(__doc__)
    parser.add_argument("--output_folder", default="results/demo")
    parser.add_argument("--data_folder")
    parser.add_argument("--trials", nargs="+", default=[])
    parser.add_argument("--method", default="simclr")
    parser.add_argument("--minutes", type=float, default=5.0)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--batch_size", type=int)
    parser.add_argument("--processes", type=int)
    parser.add_argument("--times")
    return parser.parse_known_args(argv)


def prepare_corpus(args):
    """Makes the default corpus where no data are given.

    Fills in ``data_folder`` and ``trials`` of the arguments.
    """
    if args.data_folder is None:
        corpus = synthesize_voices(os.path.join(args.output_folder, "corpus"))
        args.data_folder = os.path.join(corpus, "train")
        args.trials = [os.path.join(corpus, "trials", "wild.txt")]
    if not os.path.isdir(args.data_folder):
        raise FileNotFoundError(f"No such folder of audio: {args.data_folder}")
    for path in args.trials:
        if not os.path.isfile(path):
            raise FileNotFoundError(f"No such trial list: {path}")


def settings_of_run(args, further):
    """Records the settings of the demo, or continues an equal one.

    ``further`` are overrides of the hparams file. The settings have ``epochs``
    if the number of epochs is known.
    """
    path = os.path.join(args.output_folder, RECORD)
    is_other = os.path.exists(os.path.join(args.output_folder, "save"))
    if is_other and not os.path.exists(path):
        raise ValueError(
            f"{args.output_folder} holds a run of another script. Name "
            "another --output_folder, or remove that one."
        )
    settings = {**vars(args), "further": further}
    del settings["times"]
    # the training compares its settings, of which some may change
    may_change = ["epochs", "layout", "further"]
    return same_or_refuse(path, settings, may_change)


def processes_for(args, batch_size, device):
    """Number of processes that train, each with a part of the batch.

    On a CPU, processes of one thread compute more steps than one process of as
    many threads. One process if OMP_NUM_THREADS gives the number of threads.
    """
    if args.processes is not None:
        if args.processes < 1 or batch_size % args.processes:
            raise ValueError(
                f"The batch of {batch_size} utterances cannot be divided among "
                f"{args.processes} processes. Change --processes or "
                "--batch_size."
            )
        return args.processes
    if device != "cpu" or "OMP_NUM_THREADS" in os.environ:
        return 1
    return max(
        count
        for count in (1, 2, 4)
        if count == 1
        or count <= processors()
        and batch_size >= count * SMALLEST_BATCH
        and batch_size % count == 0
    )


def run_here(script, arguments):
    """Runs another script of the recipe in this process."""
    runpy.run_path(os.path.join(HERE, script))["main"](arguments)


def launch(args, script, arguments):
    """Runs a script of the recipe in this process, or in ``args.processes``."""
    if args.processes == 1:
        return run_here(script, arguments)
    command = torchrun(args.processes)
    command += [os.path.join(HERE, script), *arguments]
    with only_job(args.output_folder) as lock:
        code = run_command(command, args.output_folder, lock)
    if code:
        raise ChildProcessError(
            f"{script} ended with exit code {code}. Its output is above and in "
            f"{os.path.join(args.output_folder, LOG)}; the same command goes "
            "on from here."
        )


def batch_of(args):
    """The argument of the batch size, if there is one."""
    if args.batch_size is None:
        return []
    return ["--batch_size", str(args.batch_size)]


def training_arguments(args, further, folder):
    """The command line of train_ssl.py."""
    given = [
        os.path.join(HERE, "hparams", f"train_{args.method}.yaml"),
        *("--data_folder", args.data_folder),
        *("--output_folder", folder),
        *("--seed", str(args.seed)),
    ]
    return given + batch_of(args) + further


def time_steps(args, further):
    """Writes the seconds of an epoch of training to the file ``args.times``.

    ``further`` are overrides of the hparams file.
    """
    folder = os.path.dirname(os.path.abspath(args.times))
    few = [f"--optimizer_step_limit={TIMED_STEPS}"]
    if not any(x.startswith("--noprogressbar") for x in further):
        few.append("--noprogressbar=True")
    _, run_opts, hparams, _ = load_experiment(
        training_arguments(args, further + few, folder)
    )
    distributed.start(run_opts)
    distributed.on_first(
        functools.partial(
            prepare_audio_folder, min_seconds=hparams["min_seconds"]
        ),
        hparams["data_folder"],
        hparams["train_annotation"],
    )
    brain, step = experiment.time_steps(hparams, run_opts, TIMED_STEPS)
    if distributed.rank() == 0:
        times = {"step": step, "epoch": step * brain.steps_per_epoch}
        write_json(args.times, times)


def epochs_for(args, further):
    """Times some steps, to find how many epochs fit into the minutes.

    ``further`` are overrides of the hparams file.
    """
    with tempfile.TemporaryDirectory() as folder:
        path = os.path.join(folder, "times.json")
        given = [
            *("--data_folder", args.data_folder, "--method", args.method),
            *("--seed", str(args.seed), "--times", path),
        ]
        launch(args, "demo.py", given + batch_of(args) + further)
        times = read_json(path)
    epochs = max(round(60 * args.minutes / times["epoch"]), 1)
    print(f"A step takes {times['step']:.2f} s here: {epochs} epochs.")
    return epochs


def verify_all(embed, args, tag, sample_rate, device="cpu"):
    """Verifies an encoder on all trial lists; gives the summary of each.

    ``tag`` names the folder of the results.
    """
    folder = os.path.join(args.output_folder, "verification", tag)
    for path in args.trials:
        read_trials(path, need_labels=True)
    summaries, cache = {}, {}
    for path in args.trials:
        name = os.path.splitext(os.path.basename(path))[0]
        summaries[name] = verify(
            embed,
            path,
            folder,
            sample_rate=sample_rate,
            cache=cache,
            device=device,
        )["raw"]
    return summaries


def load_settings(args, further):
    """Objects and overrides of the hparams file, run options and device."""
    with tempfile.TemporaryDirectory() as folder:
        _, run_opts, hparams, overrides = load_experiment(
            training_arguments(args, further, folder)
        )
    return hparams, overrides, run_opts, run_opts["device"] or infer_device()


def describe_machine():
    """Processor, cores and versions, for figures to be comparable."""
    name = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            models = [row for row in file if row.startswith("model name")]
        name = models[0].split(":", 1)[1].strip() if models else name
    return (
        f"{name}, {os.cpu_count()} cores, torch {torch.__version__}, "
        f"speechbrain {sb.__version__}, Python {platform.python_version()}"
    )


def summarize_run(args, argv, before, after):
    """Writes summary.json and report.html; prints the error rates."""
    log_path = os.path.join(args.output_folder, "train_log.jsonl")
    last = read_jsonl(log_path)[-1]
    audio = os.path.basename(os.path.abspath(args.data_folder))
    summary = {
        "title": f"{args.method} on {audio}",
        "command": shlex.join(["python", "demo.py", *argv]),
        "machine": describe_machine(),
        "seed": args.seed,
        "processes": args.processes,
        "training_seconds": last["seconds"],
        "epochs": last["epoch"],
        "steps": last["step"],
        "views_per_second": last["train"]["views_per_second"],
        "warnings": last["warnings"],
        "selfcheck": {
            name: value
            for name, value in last["valid"].items()
            if name.startswith("selfcheck")
        },
        "before": before,
        "after": after,
        "label_use": LABEL_USE,
    }
    write_json(os.path.join(args.output_folder, "summary.json"), summary)
    page = write_report(args.output_folder)
    for name, figures in after.items():
        print(
            f"{name}: EER {before[name]['EER']:.2f} % -> "
            f"{figures['EER']:.2f} % [{figures['EER_low']:.1f}, "
            f"{figures['EER_high']:.1f}], minDCF(0.01) "
            f"{figures['minDCF_0.01']:.3f}"
        )
    print(f"Model: {os.path.join(args.output_folder, 'model')}")
    print(f"Report: {page}")


def encoder_file_of(further):
    """The file or name that ``--encoder_file`` gives, None without it."""
    parser = argparse.ArgumentParser(add_help=False, allow_abbrev=False)
    parser.add_argument(ENCODER_FILE)
    found = parser.parse_known_args(further)[0].encoder_file
    is_file = found is not None and os.path.isfile(found)
    return os.path.abspath(found) if is_file else found


def round_epochs(epochs):
    """Number of epochs of a round; ``epochs`` are those of the first training.

    After a long training, more than a quarter of them gain nothing; after a
    short one, a quarter gains nothing (RESULTS.md).
    """
    return min(epochs, max(math.ceil(epochs / 4), 30))


def rounds_arguments(args, further, model, epochs):
    """The command line of run_rounds.py."""
    _, overrides, run_opts, _ = load_settings(args, further)
    lines = [line.partition(": ") for line in overrides.split("\n")]
    given = {key: value for key, _, value in lines}
    shared = {key: given[key] for key in SHARED if key in given}
    changes = {"number_of_epochs": epochs}
    if encoder_file := encoder_file_of(further):
        # as a whole; its keys would be merged into the encoder of the YAML
        shared = {k: v for k, v in shared.items() if k not in ENCODER}
        changes["encoder_file"] = encoder_file
    settings = {
        "data_folder": args.data_folder,
        "output_folder": os.path.join(args.output_folder, "rounds"),
        "model_folder": model,
        "seed": args.seed,
        "rounds": args.rounds,
        "processes": args.processes,
        "trials": args.trials,
        "shared": shared,
        "train": {"changes": changes},
        **{key: getattr(run_opts, key) for key in run_opts.overridden_args},
    }
    texts = {
        key: value if isinstance(value, str) else json.dumps(value)
        for key, value in settings.items()
    }
    hparams_file = os.path.join(HERE, "hparams", "rounds.yaml")
    return [hparams_file, *(f"--{key}={text}" for key, text in texts.items())]


def main(argv):
    """Runs the demo."""
    keep_memory()
    args, further = parse_arguments(argv)
    if args.times:
        if args.data_folder is None:
            raise ValueError("--times needs a --data_folder.")
        return time_steps(args, further)
    args.output_folder = os.path.abspath(args.output_folder)
    os.makedirs(args.output_folder, exist_ok=True)
    prepare_corpus(args)
    settings = settings_of_run(args, further)
    hparams, _, _, device = load_settings(args, further)
    # another machine goes on with as many processes
    size = hparams["batch_size"]
    count = settings.get("layout") or processes_for(args, size, device)
    student = hparams["student"].to(device).eval()
    rate = hparams["sample_rate"]
    before = verify_all(student.embed, args, "before", rate, device)
    settings["layout"] = args.processes = count
    if count > 1:
        args.batch_size = size // count  # of one process
    if not any(x.split("=")[0] == "--number_of_epochs" for x in further):
        if "epochs" not in settings:
            settings["epochs"] = epochs_for(args, further)
        further = [*further, "--number_of_epochs", str(settings["epochs"])]
    write_json(os.path.join(args.output_folder, RECORD), settings)
    arguments = training_arguments(args, further, args.output_folder)
    launch(args, "train_ssl.py", arguments)
    model = os.path.join(args.output_folder, "model")
    encoder = load_encoder(model, device)
    rate = encoder.audio_normalizer.sample_rate
    after = verify_all(encoder.encode_batch, args, "after", rate, device)
    for name, figures in list(after.items())[:1]:
        suggest_threshold(model, figures, name)
    summarize_run(args, argv, before, after)
    if args.rounds:
        log = os.path.join(args.output_folder, "train_log.jsonl")
        epochs = round_epochs(read_jsonl(log)[-1]["epoch"])
        arguments = rounds_arguments(args, further, model, epochs)
        run_here("run_rounds.py", arguments)


if __name__ == "__main__":
    run_script(main)
