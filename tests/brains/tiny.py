"""A run small enough to repeat: twelve noises, a linear encoder, MoCo."""

import functools
import json
import os

import numpy as np
import soundfile
import speechbrain as sb
import torch
from speechbrain.lobes.models.ECAPA_TDNN import ECAPA_TDNN
from speechbrain.utils.data_pipeline import provides, takes
from speechbrain.utils.epoch_loop import EpochCounter

from speechbrain_ssl import distributed
from speechbrain_ssl.brains.ssl import SSLBrain
from speechbrain_ssl.checkpoints import AtomicCheckpointer
from speechbrain_ssl.dataio.annotations import (
    EpochSampler,
    UtteranceDataset,
    read_annotation,
    write_annotation,
)
from speechbrain_ssl.dataio.views import ViewSampler
from speechbrain_ssl.nnet.branch import Branch
from speechbrain_ssl.nnet.teacher import EMATeacher
from speechbrain_ssl.objectives.moco import MoCo

DIM = 6


class Frames(torch.nn.Module):
    """Waveforms [batch, time] to frames [batch, frames, 10]."""

    def forward(self, wavs):
        return wavs.unflatten(1, (-1, 10))


class AsTheyAre(torch.nn.Module):
    """Normalisation that does nothing."""

    def forward(self, feats, lengths):
        return feats


class Pooled(torch.nn.Module):
    """A linear layer and a mean over time: nothing that needs a batch."""

    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(10, DIM)

    def forward(self, feats, lengths):
        return self.layer(feats).tanh().mean(1)


def ecapa():
    """The smallest ECAPA, with BatchNorm."""
    return ECAPA_TDNN(10, channels=[8] * 4 + [24], lin_neurons=DIM)


def write_corpus(folder, count=12):
    """Writes noises of half a second and their annotation."""
    rng = np.random.default_rng(0)
    rows = []
    for i in range(count):
        name = f"{i:02d}.wav"
        noise = 0.1 * rng.standard_normal(8000)
        soundfile.write(os.path.join(folder, name), noise, 16000)
        rows.append((f"utt{i:02d}", 0.5, f"$data_root/{name}", 0, 8000))
    write_annotation(os.path.join(folder, "train.csv"), rows)


def damage_corpus(folder):
    """Puts NaN into utt05, and cuts utt07 shorter than its annotation."""
    noise, _ = soundfile.read(os.path.join(folder, "05.wav"))
    noise[::1000] = np.nan
    path = os.path.join(folder, "05.wav")
    soundfile.write(path, noise, 16000, subtype="FLOAT")
    soundfile.write(os.path.join(folder, "07.wav"), noise[1:99], 16000)


def make_brain(folder, output, encoder=Pooled, objective=None, **settings):
    """A brain ready to fit, always of the same weights.

    ``encoder`` makes the encoder; settings override hparams and run options.
    """
    torch.manual_seed(0)
    student = Branch(Frames(), AsTheyAre(), encoder())
    teacher = EMATeacher(student, momentum=0.9)
    objective = objective or MoCo(DIM, queue_size=20)
    counter = EpochCounter(settings.pop("epochs", 2))
    modules = {"student": student, "teacher": teacher, "objective": objective}
    tables = settings.get("cluster_tables", [])
    recoverables = {**modules, "counter": counter}
    recoverables.update({f"table{n}": t for n, t in enumerate(tables)})
    checkpointer = AtomicCheckpointer(
        os.path.join(output, "save"), recoverables
    )
    run_opts = {"device": "cpu", "noprogressbar": True}
    for name in list(settings):
        if hasattr(sb.core.RunOptions(), name):
            run_opts[name] = settings.pop(name)
    hparams = {
        "seed": 3,
        "output_folder": str(output),
        "epoch_counter": counter,
        "lr_schedule": 1.0,
        "frozen_epochs": [],
        "clip_each_tensor": False,
        "checkpoints_to_keep": 2,
        "select_by": None,
        "train_loggers": [],
        "view_sampler": ViewSampler(16000, 2, 0.1, seed=3),
        "student_sees_global": True,
        "extract_from": "student",
        "dev_trials": None,
        "dev_every": 1,
        "cluster_tables": [],
        "batch_size": 3,
        **settings,
    }
    brain_class = hparams.pop("brain_class", SSLBrain)
    brain = brain_class(
        modules,
        hparams.pop("opt_class", functools.partial(torch.optim.AdamW, lr=0.01)),
        hparams,
        run_opts,
        checkpointer,
    )
    brain.train_csv = os.path.join(folder, "train.csv")
    return brain


def fit(brain):
    """Trains on the corpus."""
    sampler = brain.hparams.view_sampler

    @takes("key", "wav", "start", "stop")
    @provides("views", "draws", "speed")
    def views(key, wav, start, stop):
        made = sampler(key, wav, start, stop)
        yield made[0]
        yield made[1]
        yield sampler.speed_of(key)

    utterances = read_annotation(
        brain.train_csv, os.path.dirname(brain.train_csv)
    )
    sampler.prepare(utterances)
    dataset = UtteranceDataset(
        utterances,
        [views],
        ["id", "index", "views", "draws", "speed"],
        seed=sampler.seed,
    )
    size = brain.hparams.batch_size
    order = EpochSampler(
        len(dataset),
        seed=3,
        rank=distributed.rank(),
        world_size=distributed.world_size(),
        batch_size=size,
    )
    loader = {"sampler": order, "batch_size": size, "drop_last": True}
    brain.fit(brain.hparams.epoch_counter, dataset, train_loader_kwargs=loader)
    return brain


def state_of(brain):
    """All tensors that training moves, by name."""
    return {
        f"{name}.{key}": value.clone()
        for name in brain.modules
        for key, value in brain.module(name).state_dict().items()
    }


def run(folder, output, **settings):
    """Makes a brain and trains it."""
    return fit(make_brain(folder, str(output), **settings))


def records(output):
    """The lines of train_log.jsonl."""
    with open(os.path.join(output, "train_log.jsonl")) as file:
        return [json.loads(line) for line in file]


def unexplained(output):
    """Names of logged statistics without a line in stats_help.json."""
    with open(os.path.join(output, "stats_help.json")) as file:
        explained = json.load(file)
    return {
        name
        for record in records(output)
        for name in {**record["train"], **record["valid"]}
        if not explained.get(name, "").endswith(".")
    }
