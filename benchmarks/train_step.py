"""Where the time of a training step goes, beside the floor.

    > python benchmarks/train_step.py recipes/AudioFolder/SSL/hparams/train_simclr.yaml \
        --data_folder /audio [--number_of_steps 12] [further overrides]

The floor is the same precision and batch, resident in memory: features, forward
and backward of the student's views, and the teacher's forward pass, if there is
one. The loop is SSLBrain's on the real loader. Prints JSON.
"""

import json
import os
import pathlib
import statistics
import sys
import tempfile
import time

import torch

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "recipes/AudioFolder/SSL"))

from audio_folder_prepare import prepare_audio_folder  # noqa: E402

from speechbrain_ssl.brains import experiment  # noqa: E402
from speechbrain_ssl.dataio.annotations import read_annotation  # noqa: E402
from speechbrain_ssl.options import load_experiment  # noqa: E402
from speechbrain_ssl.runtime import keep_memory  # noqa: E402


def median_seconds(function, repeats, device):
    """Median duration of a call, after two that are not counted."""
    durations = []
    for repeat in range(repeats + 2):
        started = time.perf_counter()
        function()
        if torch.device(device).type == "cuda":
            torch.cuda.synchronize()
        durations.append(time.perf_counter() - started)
    return statistics.median(durations[2:])


def measure_floor(brain, views, repeats):
    """Seconds of features, forward and backward on a resident batch."""
    student = brain.module("student").train()
    # views of one length go through the encoder together
    lengths = dict.fromkeys(view.shape[1] for view in views)
    batches = [
        torch.cat([view for view in views if view.shape[1] == length])
        for length in lengths
    ]

    def features():
        with brain.training_ctx:
            return [
                student.mean_var_norm(
                    student.compute_features(wavs),
                    torch.ones(len(wavs), device=wavs.device),
                )
                for wavs in batches
            ]

    resident = features()

    def forward():
        with brain.training_ctx:
            return sum(
                student.embedding_model(feats).float().square().mean()
                for feats in resident
            )

    def forward_backward():
        forward().backward()
        student.zero_grad(set_to_none=True)

    def step():
        with brain.training_ctx:
            loss = student(views).projection.float().square().mean()
        loss.backward()
        student.zero_grad(set_to_none=True)

    times = {
        name: median_seconds(function, repeats, brain.device)
        for name, function in {
            "features": features,
            "forward": forward,
            "forward_backward": forward_backward,
            "floor": step,
        }.items()
    }
    times["backward"] = times.pop("forward_backward") - times["forward"]
    return times


def noise_views(sampler, size, brain):
    """Noise as the student's views, and as the teacher's."""
    counts = (sampler.counts[0] * (1 + sampler.clean_views), sampler.counts[1])
    crops, local_crops = (
        [
            0.1 * torch.randn(size, frames, device=brain.device)
            for _ in range(count)
        ]
        for count, frames in zip(counts, sampler.frames)
    )
    seen = crops + local_crops
    return (seen if brain.hparams.student_sees_global else local_crops), crops


def measure_teacher(brain, views, repeats):
    """Seconds of the teacher's forward pass on a resident batch."""
    teacher = brain.module("teacher")

    def forward():
        with brain.training_ctx:
            teacher(views)

    return median_seconds(forward, repeats, brain.device)


def measure_augmentation(sampler, packed, draws, repeats):
    """Seconds to augment a batch of clean views on one thread or device."""
    threads = torch.get_num_threads()
    on_cpu = packed.device.type == "cpu"
    torch.set_num_threads(1 if on_cpu else threads)
    seconds = median_seconds(
        lambda: sampler.augment(packed, draws), repeats, packed.device
    )
    torch.set_num_threads(threads)
    return seconds


def main(argv):
    """Measures and prints."""
    keep_memory()
    steps = 12
    if "--number_of_steps" in argv:
        place = argv.index("--number_of_steps")
        steps = int(argv[place + 1])
        argv = argv[:place] + argv[place + 2 :]
    with tempfile.TemporaryDirectory() as folder:
        _, run_opts, hparams, _ = load_experiment(
            [
                *argv,
                f"--output_folder={folder}",
                f"--optimizer_step_limit={steps + 4}",
                "--noprogressbar=True",
            ]
        )
        prepare_audio_folder(
            hparams["data_folder"], hparams["train_annotation"]
        )
        brain, loop = experiment.time_steps(hparams, run_opts, steps + 4)
        batch_size = hparams["batch_size"]
        sampler = hparams["view_sampler"]
        sampler.augment_on = "device"
        utterances = read_annotation(
            hparams["train_annotation"], hparams["data_folder"]
        )
        dataset = experiment.views_of(utterances, sampler)
        sampler.to(brain.device)
        rows = [dataset[0, row] for row in range(batch_size)]
        packed, draws = (
            torch.stack([row[name] for row in rows]).to(brain.device)
            for name in ("views", "draws")
        )
        augmentation = measure_augmentation(sampler, packed, draws, steps)
        crops, local_crops = sampler.split(sampler.augment(packed, draws))
        views = local_crops
        if hparams["student_sees_global"]:
            views = crops + local_crops
        times = measure_floor(brain, views, steps)
        if "teacher" in brain.modules:
            times["teacher"] = measure_teacher(brain, crops, steps)
            times["floor"] += times["teacher"]
    count = len(views) * batch_size
    result = {
        "views_per_step": count,
        "floor_views_per_second": count / times["floor"],
        "loop_views_per_second": count / loop,
        "loop_share_of_floor": times["floor"] / loop,
        "seconds": {
            "loop": loop,
            **times,
            "augmentation_of_a_batch": augmentation,
        },
        "precision": brain.precision,
        "device": str(brain.device),
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
    }
    if torch.cuda.is_available():
        peak = torch.cuda.max_memory_allocated()
        result["peak_memory_bytes"] = peak
    print(json.dumps(result, indent=2))


if __name__ == "__main__":
    main(sys.argv[1:])
