"""Views per second of the loader alone, beside plain reading.

    > python benchmarks/loader.py recipes/AudioFolder/SSL/hparams/train_simclr.yaml \
        --data_folder /audio [further overrides]

The floor is soundfile reading as many stretches of the same files in one
process: no draws, no augmentation, no batches. Prints JSON.
"""

import json
import os
import pathlib
import sys
import tempfile
import time

import torch

ROOT = pathlib.Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "recipes/AudioFolder/SSL"))

from audio_folder_prepare import prepare_audio_folder  # noqa: E402
from speechbrain.dataio.dataloader import make_dataloader  # noqa: E402

from speechbrain_ssl.brains import experiment  # noqa: E402
from speechbrain_ssl.dataio import audio  # noqa: E402
from speechbrain_ssl.dataio.annotations import (  # noqa: E402
    EpochSampler,
    read_annotation,
)
from speechbrain_ssl.options import load_experiment  # noqa: E402

SECONDS = 8.0


def rate(batches, views):
    """Views per second of an iterator of batches, its first one left out."""
    next(batches)
    started, count = time.perf_counter(), 0
    for batch in batches:
        count += views
        if time.perf_counter() - started > SECONDS:
            break
    return count / (time.perf_counter() - started)


def reading(dataset, sampler):
    """Plain reading of the global crops, utterance by utterance."""
    while True:
        for row in range(len(dataset)):
            items = dataset.utterances.row(row)
            for _ in range(sum(sampler.counts)):
                stop = items["start"] + sampler.frames[0]
                audio.read(items["wav"], items["start"], stop)
            yield row


def batches(dataset, hparams, workers):
    """Epoch after epoch of batches."""
    order = EpochSampler(len(dataset), batch_size=hparams["batch_size"])
    loader = make_dataloader(
        dataset,
        sampler=order,
        batch_size=hparams["batch_size"],
        num_workers=workers,
        persistent_workers=workers > 0,
    )
    for epoch in range(10**6):
        order.set_epoch(epoch)
        yield from loader


def main(argv):
    """Measures and prints."""
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        _, _, hparams, _ = load_experiment([*argv, "--output_folder", folder])
        prepare_audio_folder(
            hparams["data_folder"], hparams["train_annotation"]
        )
        utterances = read_annotation(
            hparams["train_annotation"], hparams["data_folder"]
        )
        sampler = hparams["view_sampler"]
        dataset = experiment.views_of(utterances, sampler)
        views = sum(sampler.counts)
        sampler.augment_on = "workers"
        kinds = {"augmented": sampler.augmentation, "clean": None}
        result = {"floor_reading": rate(reading(dataset, sampler), views)}
        for workers in (0, 1, 2):
            for name, kind in kinds.items():
                sampler.augmentation = kind
                result[f"{name}_{workers}_workers"] = rate(
                    batches(dataset, hparams, workers),
                    views * hparams["batch_size"],
                )
    print(json.dumps({"views_per_second": result, "cores": os.cpu_count()}))


if __name__ == "__main__":
    main(sys.argv[1:])
