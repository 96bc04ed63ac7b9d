"""Loader workers start in any way: data sets reach them as pickles, too."""

import contextlib
import pathlib
import pickle
import re
import types
from multiprocessing.reduction import ForkingPickler

import pytest
import torch
from hyperpyyaml import load_hyperpyyaml

from speechbrain_ssl.brains import experiment
from speechbrain_ssl.brains.experiment import views_of
from speechbrain_ssl.dataio.annotations import read_annotation, write_annotation
from tests.models import write_noise

RECIPES = pathlib.Path(__file__).parents[2] / "recipes"
COUNT = 8


def views_section(path):
    """The part of a YAML that makes views, with what it refers to."""
    text = path.read_text()
    views = text[text.index("# Views") : text.index("# Encoder")]
    for name in re.findall(r"!ref <(\w+)", views):
        if not re.search(rf"^{name}:", views, re.MULTILINE):
            value = re.search(rf"^{name}: ([\d.]+)", text, re.MULTILINE)[1]
            views = f"{name}: {value}\n{views}"
    views = re.sub(r"simulated: \d+", "simulated: 4", views)
    return re.sub(r"(?<=    clusters: )[^#\n]+", "4 ", views)


@pytest.fixture(scope="module")
def utterances(tmp_path_factory):
    folder = tmp_path_factory.mktemp("corpus")
    rows = []
    for number in range(COUNT):
        path = write_noise(folder / f"{number}.wav", 3.0, seed=number)
        rows.append((f"{number}.wav", 3.0, path, 0, 48000))
    write_annotation(folder / "train.csv", rows)
    return read_annotation(folder / "train.csv")


# of YAMLs with the same classes one will do
PATHS = {
    tuple(re.findall(r"!\w+:([\w.]+)", views_section(path))): path
    for path in sorted(RECIPES.glob("*/*/hparams/train_*.yaml"))
    # the audio of these has a column of faces
    if not path.stem.endswith(("_face", "simclr_av"))
}


@pytest.mark.parametrize("path", PATHS.values(), ids=lambda path: path.stem)
def test_the_views_of_each_yaml_can_be_pickled(path, utterances):
    sampler = load_hyperpyyaml(views_section(path))["view_sampler"]
    dataset = views_of(utterances, sampler)
    # as multiprocessing does, which keeps shared memory shared
    copy, copied = pickle.loads(ForkingPickler.dumps((dataset, sampler)))
    first, second = dataset[1, 2], copy[1, 2]
    assert torch.equal(first["views"], second["views"])
    assert torch.equal(first["draws"], second["draws"])
    if sampler.partners is not None:
        sampler.partners.table.labels[0] = 7  # of another clustering
        assert copied.partners.table.labels[0] == 7


class Brain:
    """Trains one epoch, by an interrupted one or a whole one."""

    debug = True

    def __init__(self, error=None):
        self.error = error

    def fit(self, counter, train_set, train_loader_kwargs):
        self.train_loader = torch.utils.data.DataLoader(
            train_set,
            num_workers=2,
            persistent_workers=True,
            worker_init_fn=train_loader_kwargs["worker_init_fn"],
        )
        list(self.train_loader)
        self.workers = self.train_loader._iterator._workers
        if self.error:
            raise self.error


@pytest.mark.parametrize("error", [None, KeyError("a fault")])
def test_workers_end_with_the_training_without_a_signal(error):
    brain = Brain(error)
    counter = types.SimpleNamespace(current=1)
    training = types.SimpleNamespace(
        seed=1,
        batch_size=1,
        num_workers=2,
        epoch_counter=counter,
        number_of_epochs=1,
        sequential_rows=False,
    )
    with contextlib.nullcontext() if error is None else pytest.raises(KeyError):
        experiment.fit(brain, [1, 2, 3], training, None)
    assert [worker.exitcode for worker in brain.workers] == [0, 0]
