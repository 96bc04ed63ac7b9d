"""What a GPU does with all of this, in one command of at most 15 minutes.

    > benchmarks/gpu.sh --audio /speech --out results/gpu

Without ``--audio`` it makes its own files of noise, and the error rates say
nothing. A folder of audio is used as it is; with ``train/`` and
``trials/wild.txt`` in it, those are used, and the learning runs are verified.
Each part is a process with a time limit of its own; one that fails or takes
too long is reported, and the next one goes on. After each part ``gpu.json``
and ``gpu.md`` in ``--out`` hold all results so far, and ``rates.json`` what
``speechbrain-ssl plan`` reads. Name parts to run only these:

%s

Two parts run only where they are named. ``curves`` trains each VoxCeleb YAML,
of both stages, for 200 steps at full size with its own script, and reports the
loss of every 20 steps, the effective rank, peak memory and speed. It takes up
to half an hour; ``--only moco dino`` leaves out other YAMLs. ``trace``, or
``--trace``, runs eight steps of MoCo under PyTorch's profiler: ``trace.json``
can be opened in https://ui.perfetto.dev, ``trace.txt`` has the longest
operators. ``--small`` reduces all sizes, so that the script itself can be tried
on a CPU; its figures mean nothing.
"""

import argparse
import contextlib
import csv
import functools
import glob
import json
import os
import pathlib
import re
import signal
import subprocess
import sys
import tempfile
import time

import torch

ROOT = pathlib.Path(__file__).resolve().parents[1]
RECIPES = {
    name: ROOT / "recipes" / name / "SSL"
    for name in ("VoxCeleb", "AudioFolder")
}
sys.path.insert(0, str(RECIPES["AudioFolder"]))

# parts and their seconds; what the steps leave out for lack of time is named
PARTS = {
    "tests": (120, "tests/test_gpu.py: torch itself refuses waits in a step"),
    "loop": (180, "the loop of each YAML of stage one at full size"),
    "rates": (80, "steps of each YAML on noise in memory: rates.json"),
    "workers": (50, "MoCo with augmentation in workers, not on the device"),
    "extract": (60, "embeddings of files in a second"),
    "kmeans": (30, "1.09 M x 192 into 7,500 clusters"),
    "processes": (60, "torchrun with one process, or two on two GPUs: SyncBN"),
    "resume": (120, "kill -9 and resume: bits that differ"),
    "learn": (200, "MoCo, SDPN and CA-DINO for a minute each"),
}
ON_REQUEST = {
    "curves": (1800, "200 steps of each YAML by its script, epochs of 20"),
    "trace": (120, "eight steps under the profiler"),
}
# by priority: what comes first is measured if time runs out
FIRST = ("moco", "dino", "sdpn", "ca_dino", "simclr", "rdino")


def yamls(recipe="VoxCeleb"):
    """Training YAMLs of a recipe by name, the important ones first."""
    found = sorted(glob.glob(str(RECIPES[recipe] / "hparams/train_*.yaml")))
    names = {pathlib.Path(p).stem.removeprefix("train_"): p for p in found}
    order = [*FIRST, *(name for name in names if name not in FIRST)]
    return {name: names[name] for name in order if name in names}


def chosen(args):
    """VoxCeleb YAMLs by name, those of ``--only`` if it is given."""
    found = yamls()
    return {name: found[name] for name in args.only or found}


def is_stage_one(path):
    """Whether a YAML trains a student."""
    return "\nstudent:" in pathlib.Path(path).read_text()


def settings(args):
    """Overrides that all trainings here have."""
    given = ["--noprogressbar=True"]
    if args.small:
        given += ["--batch_size=4", "--num_workers=0"]
    else:
        given += [f"--num_workers={max(1, min(12, (os.cpu_count() or 1) - 2))}"]
    return given


def make_audio(folder, files, seconds=8.0):
    """Files of modulated noise, where there is no audio."""
    import numpy as np
    import soundfile

    rng = np.random.default_rng(0)
    frames = int(16000 * seconds)
    os.makedirs(folder, exist_ok=True)
    for number in range(files):
        noise = rng.standard_normal(frames) * 0.1
        pitch = np.sin(
            np.arange(frames) * 2 * np.pi * rng.uniform(80, 250) / 16000
        )
        path = os.path.join(folder, f"{number:05d}.flac")
        soundfile.write(path, noise * (0.2 + np.abs(pitch)), 16000)


def audio_of(args):
    """Training audio, and the list of trials or None."""
    root = args.audio
    if not root:
        root = os.path.join(args.scratch, "audio")
        if not os.path.isdir(root):
            make_audio(root, 24 if args.small else 800)
        return root, None
    trials = os.path.join(root, "trials", "wild.txt")
    train = os.path.join(root, "train")
    return (
        train if os.path.isdir(train) else root,
        trials if os.path.isfile(trials) else None,
    )


def load(args, path, *further):
    """Loads a YAML for the audio here; writes its training CSV."""
    from audio_folder_prepare import prepare_audio_folder

    from speechbrain_ssl.options import load_experiment

    folder, _ = audio_of(args)
    output = tempfile.mkdtemp(dir=args.scratch)
    given = [path, f"--data_folder={folder}", f"--output_folder={output}"]
    if "\nprepare:" in pathlib.Path(path).read_text():
        given.append("--prepare=null")
    given += [*settings(args), *further]
    _, run_opts, hparams, _ = load_experiment(given)
    prepare_audio_folder(hparams["data_folder"], hparams["train_annotation"])
    return run_opts, hparams


def device_name():
    """Name of the GPU, or CPU."""
    if torch.cuda.is_available():
        return torch.cuda.get_device_name()
    return "CPU"


def forget():
    """Frees what the last measurement left on the GPU."""
    import gc

    torch._dynamo.reset()
    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
        torch.cuda.reset_peak_memory_stats()


def measure_loop(args, path, precision, *further):
    """Views per second of the loop and of its floor, in one process.

    The floor is features, forward and backward of the student and the forward
    pass of the teacher, on a batch in memory.
    """
    import train_step

    from speechbrain_ssl.brains import experiment

    forget()
    steps = 3 if args.small else 60
    steps += experiment.SETTLING_STEPS
    run_opts, hparams = load(
        args,
        path,
        f"--precision={precision}",
        f"--optimizer_step_limit={steps}",
        *further,
    )
    started = time.monotonic()
    brain, seconds = experiment.time_steps(hparams, run_opts, steps)
    taken = time.monotonic() - started
    peak = torch.cuda.max_memory_allocated() if brain.on_gpu else 0
    sampler, size = brain.hparams.view_sampler, hparams["batch_size"]
    seen, everything = train_step.noise_views(sampler, size, brain)
    floor = train_step.measure_floor(brain, seen, 3 if args.small else 10)
    teacher = 0.0
    if "teacher" in brain.modules:
        teacher = train_step.measure_teacher(brain, everything, 3)
    views = len(seen) * size
    return {
        "views_per_step": views,
        "views_per_second": views / seconds,
        "floor_views_per_second": views / (floor["floor"] + teacher),
        "share_of_floor": (floor["floor"] + teacher) / seconds,
        "data_wait": brain.wait_seconds / max(brain.training_seconds, 1e-9),
        "peak_memory_gb": peak / 1e9,
        "seconds_with_start": taken,
    }


def loop(args, report):
    """Each YAML of stage one: bf16, then fp32 with TF32, then compiled."""
    ways = [("bf16", ()), ("fp32", ()), ("bf16", ("--compile=True",))]
    names = {n: p for n, p in chosen(args).items() if is_stage_one(p)}
    if args.small:
        names, ways = {"moco": names["moco"]}, ways[:1]
    for precision, further in ways:
        for name, path in names.items():
            key = f"{name} {precision}{' compiled' if further else ''}"
            report(
                key,
                functools.partial(
                    measure_loop, args, path, precision, *further
                ),
            )


def workers(args, report):
    """The same MoCo with augmentation in the loader."""
    path = yamls()["moco"]
    change = "--view_sampler={augment_on: workers}"
    report(
        "moco bf16 workers", lambda: measure_loop(args, path, "bf16", change)
    )


def rates(args, report):
    """What ``speechbrain-ssl plan`` reads."""
    for name, path in chosen(args).items():
        if args.small and name not in ("moco", "dlg_lc"):
            continue
        given = [path, "--out", os.path.join(args.out, "rates.json")]
        given += ["--random_wavlm"] if "wavlm" in name else []
        given += ["--steps", "1" if args.small else "10"]
        given += ["--utterances", "2"] if args.small else []
        report(name, lambda given=given: in_process("rates.py", given))


def curves(args, report):
    """The first 200 steps of each YAML."""
    for name, path in chosen(args).items():
        if args.small and not args.only and name not in ("moco", "dlg_lc"):
            continue
        report(name, functools.partial(measure_curve, args, path))


def measure_curve(args, path):
    """Trains with the script of a YAML; an epoch has 20 steps.

    Schedules are those of the YAML, so that these are the first ten epochs of
    the full number. Rows of files are repeated to fill them. Stage two learns
    the file of each row, from random weights or those of its YAML.
    """
    import importlib

    forget()
    steps, epochs = (2, 2) if args.small else (20, 10)
    text = pathlib.Path(path).read_text()
    size = int(re.search(r"^batch_size: (\d+)", text, re.M)[1])
    size = 4 if args.small else size
    folder, _ = audio_of(args)
    output, data = (tempfile.mkdtemp(dir=args.scratch) for _ in range(2))
    given = [path, f"--data_folder={folder}", f"--output_folder={output}"]
    given += [*settings(args), f"--optimizer_step_limit={steps * epochs}"]
    given += ["--checkpoints_to_keep=1", "--average_last=1"]
    script, rows = "train_ssl", write_rows(args, data, steps * size)
    if not is_stage_one(path):
        labelled = "speakers" if "\nspeakers:" in text else "pseudo_labels"
        script = "train_pseudo_labels"
        if labelled == "speakers":
            script = "train_supervised"
        given.append(f"--{labelled}={data}/labels/pseudo_labels.csv")
    if "\nprepare:" in text:
        given += ["--prepare=null", "--skip_prep=True"]
        given.append(f"--train_annotation={rows}")
    if "\ncontinue_from:" in text:
        given.append("--continue_from=null")
    if re.search(r"^cluster_from: \d", text, re.M):  # later than these steps
        given.append("--cluster_table={clusters: 0.5}")
    if "\nwavlm_source:" in text:
        from rates import random_wavlm

        wavlm = random_wavlm(os.path.join(args.scratch, "wavlm"))
        given.append(f"--wavlm_source={wavlm}")
    if args.small:
        given.append("--augmentation={effects: {rir: {simulated: 5}}}")
    importlib.import_module(script).main(given)
    records = log_of(output)
    logs = [record["train"] for record in records]
    settled = logs[1:] or logs
    peak = torch.cuda.max_memory_allocated() if torch.cuda.is_available() else 0
    return {
        "steps": records[-1]["step"],
        "loss": " ".join(f"{log['loss']:.3f}" for log in logs),
        "effective_rank": logs[-1]["effective_rank"],
        "views_per_second": max(log["views_per_second"] for log in settled),
        "data_wait": min(log["data_wait"] for log in settled),
        "peak_memory_gb": peak / 1e9,
    }


def write_rows(args, place, count):
    """Writes a training CSV of ``count`` rows, and the file of each as label.

    They go to the folder ``place``. Each file has about four rows. Gives the
    path of the CSV.
    """
    from audio_folder_prepare import prepare_audio_folder

    from speechbrain_ssl.dataio.annotations import (
        read_annotation,
        write_annotation,
    )
    from speechbrain_ssl.pseudo_labels.labels import write_labels

    folder, _ = audio_of(args)
    listed = os.path.join(args.scratch, "files.csv")
    if not os.path.isfile(listed):
        prepare_audio_folder(folder, listed)
    with open(listed, newline="", encoding="utf-8") as file:
        files = list(csv.reader(file))[1 : 1 + max(count // 4, 4)]
    repeated = [files[n % len(files)] for n in range(count)]
    rows = [(f"{n}/{name}", *rest) for n, (name, *rest) in enumerate(repeated)]
    path = os.path.join(place, "rows.csv")
    write_annotation(path, rows)
    utterances = read_annotation(path, folder)
    labels = [n % len(files) for n in range(count)]
    ids = [row[0] for row in rows]
    write_labels(os.path.join(place, "labels"), utterances, ids, labels, "none")
    return path


def in_process(script, arguments):
    """Runs another benchmark here, and returns the JSON that it prints."""
    import importlib
    import io

    module = importlib.import_module(script.removesuffix(".py"))
    forget()
    text, argv = io.StringIO(), sys.argv
    sys.argv = [script, *arguments]
    try:
        with contextlib.redirect_stdout(text):
            module.main()
    finally:
        sys.argv = argv
    return json.loads(text.getvalue())


def extract(args, report):
    """Files in a second through an encoder of full size, and without it."""
    from speechbrain_ssl.dataio.annotations import read_annotation
    from speechbrain_ssl.pseudo_labels.extract import embed_utterances

    run_opts, hparams = load(args, yamls()["moco"])
    device = run_opts["device"] or (
        "cuda" if torch.cuda.is_available() else "cpu"
    )
    branch = hparams["student"].to(device).eval()
    utterances = read_annotation(
        hparams["train_annotation"], hparams["data_folder"]
    )
    utterances = utterances.take(torch.arange(len(utterances)) < 1000)
    rate = hparams["sample_rate"]

    def nothing(wavs, lengths):
        return wavs[:, :4]

    def run(embed):
        with torch.no_grad():
            started = time.monotonic()
            embed_utterances(embed, utterances, rate, device=device)
            seconds = time.monotonic() - started
        return {
            "files": len(utterances),
            "files_per_second": len(utterances) / seconds,
        }

    report("encoder", lambda: run(branch.embed))
    report("reading alone", lambda: run(nothing))


def kmeans(args, report):
    """k-means on the device, its labels against those of the CPU."""
    import numpy as np

    from speechbrain_ssl.clustering.kmeans import KMeans

    count, clusters = (3000, 40) if args.small else (1_090_000, 7500)
    rng = np.random.default_rng(0)
    centers = rng.standard_normal((clusters, 192), np.float32)
    points = centers[rng.integers(0, clusters, count)]
    points += 1.6 * rng.standard_normal(points.shape, np.float32)

    def run(device, points):
        found = KMeans(clusters, device=device, n_iter=20)
        started = time.monotonic()
        labels = found.fit_predict(points)
        return found, labels, time.monotonic() - started

    def on_device():
        found, labels, seconds = run("auto", points)
        some = points[:20000]
        found.device = "cpu"
        again = found.predict(some)
        return {
            "seconds": seconds,
            "empty": int(found.n_empty_),
            "labels_as_on_the_cpu": float(
                (labels[: len(some)] == again).mean()
            ),
        }

    report(f"{count} x 192 into {clusters}", on_device)


def command(args, path, output, *further):
    """The command line of a training, from a folder of audio."""
    folder, trials = audio_of(args)
    given = [str(RECIPES["AudioFolder"] / "train_ssl.py"), path]
    given += [
        f"--data_folder={folder}",
        f"--output_folder={output}",
        *settings(args),
    ]
    if trials:
        given += [f"--dev_trials={trials}"]
    return [*given, *further]


def processes(args, report):
    """Training under torchrun: DDP, NCCL and SyncBatchNorm on GPUs."""
    path = yamls("AudioFolder")["moco"]

    def run(count):
        output = tempfile.mkdtemp(dir=args.scratch)
        launch = [sys.executable, "-m", "torch.distributed.run", "--standalone"]
        launch += [f"--nproc_per_node={count}"]
        subprocess.run(
            [*launch, *command(args, path, output, "--number_of_epochs=2")],
            check=True,
        )
        records = log_of(output)
        return {
            "processes": count,
            "loss": records[-1]["train"]["loss"],
            "views_per_second": records[-1]["train"]["views_per_second"],
        }

    report("1 process", lambda: run(1))
    if torch.cuda.device_count() > 1 or args.small:
        report("2 processes", lambda: run(2))


def log_of(output):
    """The lines of a training's log."""
    with open(os.path.join(output, "train_log.jsonl")) as file:
        return [json.loads(line) for line in file]


def resume(args, report):
    """Kills a training in its second epoch, goes on, and compares weights."""
    path = yamls("AudioFolder")["moco"]

    def train(output, kill):
        further = ["--number_of_epochs=3", "--dev_trials=null"]
        further += ["--ckpt_interval_minutes=0", "--ckpt_interval_steps=1"]
        run = [sys.executable, *command(args, path, output, *further)]
        running = subprocess.Popen(run, start_new_session=True)
        log = pathlib.Path(output, "train_log.jsonl")
        while kill and running.poll() is None:
            if log.exists() and log.read_text().count("\n") >= 1:
                os.killpg(running.pid, signal.SIGKILL)
            time.sleep(0.05)
        running.wait()
        if kill and running.returncode == 0:
            raise RuntimeError("the training ended before it could be killed")

    def weights(output):
        found = sorted(
            glob.glob(f"{output}/save/CKPT*/student.ckpt"), key=os.path.getmtime
        )
        return torch.load(found[-1], map_location="cpu", weights_only=True)

    def compare():
        whole, parts = (tempfile.mkdtemp(dir=args.scratch) for _ in range(2))
        train(whole, kill=False)
        train(parts, kill=True)
        train(parts, kill=False)
        one, other = weights(whole), weights(parts)
        apart = [
            (
                (a.double() - other[n].double()).norm()
                / a.double().norm().clamp(min=1e-12)
            ).item()
            for n, a in one.items()
            if a.is_floating_point()
        ]
        return {
            "equal_bits": all(torch.equal(a, other[n]) for n, a in one.items()),
            "largest_relative_difference": max(apart),
        }

    report("kill -9", compare)


def learn(args, report):
    """A minute of training each, from random weights, on the audio given."""
    for name in ("moco", "sdpn", "ca_dino"):
        path = yamls("AudioFolder")[name]
        seconds = 8 if args.small else 60

        def run(path=path, seconds=seconds):
            output = tempfile.mkdtemp(dir=args.scratch)
            further = ["--number_of_epochs=100000", "--dev_every=100000"]
            if args.small:
                further = ["--number_of_epochs=1"]
            running = subprocess.Popen(
                [sys.executable, *command(args, path, output, *further)],
                start_new_session=True,
            )
            with contextlib.suppress(subprocess.TimeoutExpired):
                running.wait(10 * seconds if args.small else seconds)
            if running.poll() is None:  # it saves, and ends
                running.terminate()
                running.wait(30)
            records = log_of(output)
            result = {
                "epochs": len(records),
                "loss": records[-1]["train"]["loss"],
                "views_per_second": max(
                    r["train"]["views_per_second"] for r in records
                ),
                "data_wait": min(r["train"]["data_wait"] for r in records),
                "effective_rank": records[-1]["train"]["effective_rank"],
            }
            if audio_of(args)[1] is None:
                return result
            with contextlib.suppress(OSError):
                pathlib.Path(output, "train_log.jsonl").read_text()
            done = records[-1]["epoch"]
            last = [f"--number_of_epochs={done + 1}", "--dev_every=1"]
            subprocess.run(
                [sys.executable, *command(args, path, output, *last)],
                check=True,
            )
            return {
                **result,
                "wild_EER": log_of(output)[-1]["valid"].get("EER"),
            }

        report(name, run)


def tests(args, report):
    """The tests that need a GPU."""

    def run():
        found = subprocess.run(
            [
                sys.executable,
                "-m",
                "pytest",
                "-q",
                "-p",
                "no:cacheprovider",
                str(ROOT / "tests/test_gpu.py"),
            ],
            capture_output=True,
            text=True,
            cwd=ROOT,
        )
        line = found.stdout.strip().splitlines()[-1]
        failed = re.findall(r"^FAILED (.*)$", found.stdout, re.M)
        return {"pytest": line.strip("= "), "failed": failed}

    report("tests/test_gpu.py", run)


def trace(args, report):
    """PyTorch's profile of steps of MoCo."""
    from torch.profiler import ProfilerActivity, profile

    from speechbrain_ssl.brains import experiment

    def run():
        steps = 8
        run_opts, hparams = load(
            args,
            yamls()["moco"],
            "--precision=bf16",
            f"--optimizer_step_limit={steps}",
        )
        kinds = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            kinds.append(ProfilerActivity.CUDA)
        with profile(activities=kinds) as found:
            experiment.time_steps(hparams, run_opts, steps)
        path = os.path.join(args.out, "trace.json")
        found.export_chrome_trace(path)
        averages = found.key_averages()
        table = averages.table(
            sort_by="cuda_time_total" if len(kinds) > 1 else "cpu_time_total",
            row_limit=30,
        )
        pathlib.Path(args.out, "trace.txt").write_text(table)
        waits = {
            a.key: a.count
            for a in averages
            if re.search(r"Synchronize|local_scalar_dense|aten::nonzero", a.key)
        }
        return {"trace": path, "waits": waits, "steps": steps}

    report("moco", run)


def run_part(args):
    """Runs a part in this process; its results go to a file, one by one."""
    from speechbrain_ssl.runtime import keep_memory

    keep_memory()
    end = time.monotonic() + args.seconds
    path = os.path.join(args.scratch, f"{args.part}.jsonl")

    def report(name, function):
        started = time.monotonic()
        if started > end - 5:
            result = {"left_out": "no time left"}
        else:
            try:
                result = function()
            except (Exception, SystemExit) as error:
                lines = str(error).strip().splitlines()
                said = lines[-1] if lines else ""
                result = {"error": f"{type(error).__name__}: {said[:300]}"}
        result["took"] = time.monotonic() - started
        with open(path, "a") as file:
            file.write(json.dumps({"name": name, **result}) + "\n")

    globals()[args.part](args, report)


def markdown(result):
    """A table for each part."""
    lines = [
        f"# {result['device']}, torch {result['torch']}, {result['cores']} cores"
        + (" (--small: the figures mean nothing)" if result["small"] else "")
    ]
    for part, found in result["parts"].items():
        rows = found["rows"]
        columns = list(
            dict.fromkeys(
                k for row in rows for k in row if k not in ("name", "took")
            )
        )
        lines += ["", f"## {part}: {found['what']}", ""]
        if found.get("problem"):
            lines += [f"{found['problem']}", ""]
        if not rows:
            continue
        lines += [
            "| | " + " | ".join(c.replace("_", " ") for c in columns) + " |"
        ]
        lines += ["|---|" + "---|" * len(columns)]
        for row in rows:
            cells = [shown(row.get(column)) for column in columns]
            lines.append(f"| {row['name']} | " + " | ".join(cells) + " |")
    return "\n".join(lines) + "\n"


def shown(value):
    """A value in few characters."""
    if value is None:
        return ""
    if isinstance(value, float):
        return f"{value:.4g}"
    return str(value).replace("|", "/")


def run_all(args, parts):
    """Runs parts, each in a process with a limit."""
    os.makedirs(args.out, exist_ok=True)
    slack = 20 if args.small else 1  # a CPU may be slow, or busy
    end = time.monotonic() + 60 * args.minutes * slack
    result = {
        "device": device_name(),
        "torch": torch.__version__,
        "cores": os.cpu_count(),
        "small": args.small,
        "parts": {},
    }
    with tempfile.TemporaryDirectory() as args.scratch:
        audio_of(args)
        for part, (seconds, what) in parts.items():
            seconds = min(seconds * slack, end - time.monotonic())
            found = {"what": what, "rows": []}
            result["parts"][part] = found
            if seconds < 10:
                found["problem"] = "Left out: no time left."
            else:
                print(
                    f"{part} (at most {seconds:.0f} s): {what}", file=sys.stderr
                )
                found["problem"] = limited(args, part, seconds)
                path = os.path.join(args.scratch, f"{part}.jsonl")
                if os.path.exists(path):
                    with open(path) as file:
                        found["rows"] = [json.loads(line) for line in file]
            with open(os.path.join(args.out, "gpu.json"), "w") as file:
                json.dump(result, file, indent=2)
            pathlib.Path(args.out, "gpu.md").write_text(markdown(result))
    print(markdown(result))


def limited(args, part, seconds):
    """Runs a part; returns what went wrong, or None."""
    given = [sys.executable, __file__, part, "--out", args.out]
    given += ["--scratch", args.scratch, "--seconds", str(seconds)]
    given += ["--audio", args.audio] if args.audio else []
    given += ["--only", *args.only] if args.only else []
    given += ["--small"] if args.small else []
    log = os.path.join(args.out, f"{part}.log")
    with open(log, "w") as file:
        running = subprocess.Popen(
            given, stdout=file, stderr=file, start_new_session=True
        )
        try:
            running.wait(seconds)
        except subprocess.TimeoutExpired:
            os.killpg(running.pid, signal.SIGKILL)
            running.wait()
            return f"Cut off after {seconds:.0f} s."
    if running.returncode:
        lines = pathlib.Path(log).read_text().strip().splitlines()
        said = lines[-1] if lines else ""
        return f"Ended with {running.returncode}: {said[:300]}. See {log}."
    return None


def main():
    """Runs all parts, or one in this process."""
    told = "\n".join(
        f"    {name:10} {what}"
        for name, (_, what) in {**PARTS, **ON_REQUEST}.items()
    )
    parser = argparse.ArgumentParser(
        description=__doc__ % told,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        allow_abbrev=False,
    )
    parser.add_argument("parts", nargs="*", metavar="PART")
    parser.add_argument("--audio", help="folder of audio, maybe with trials")
    parser.add_argument("--out", default="results/gpu")
    parser.add_argument("--small", action="store_true")
    parser.add_argument("--trace", action="store_true")
    parser.add_argument("--minutes", type=float, help="of all parts together")
    parser.add_argument(
        "--only", nargs="+", metavar="YAML", help="for loop, rates and curves"
    )
    parser.add_argument("--scratch", help=argparse.SUPPRESS)
    parser.add_argument("--seconds", type=float, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.audio:
        args.audio = os.path.abspath(args.audio)
    args.out = os.path.abspath(args.out)
    known = {**PARTS, **ON_REQUEST}
    if unknown := set(args.parts) - set(known):
        parser.error(f"unknown parts: {', '.join(sorted(unknown))}")
    if args.scratch:
        (args.part,) = args.parts
        run_part(args)
        return
    if unknown := set(args.only or ()) - set(yamls()):
        parser.error(f"unknown YAMLs: {', '.join(sorted(unknown))}")
    wanted = ["trace"] if args.trace else args.parts or list(PARTS)
    if args.minutes is None:
        args.minutes = max(15, sum(known[part][0] for part in wanted) / 60)
    run_all(args, {name: known[name] for name in wanted})


if __name__ == "__main__":
    main()
