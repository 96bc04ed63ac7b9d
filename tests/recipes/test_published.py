"""The VoxCeleb YAMLs are the published recipes, or say where they differ.

The schedules of the publications are written here as their codes have them.
"""

import functools
import math

import numpy as np
import pytest

from speechbrain_ssl.nnet.schedules import at, lr_factor
from tests.recipes import published

TABLE = published.read_table()
PATHS = {path.stem: path for path in published.TRAINING}
STEPS = 7  # of an epoch: what counts is the number of epochs


@pytest.mark.parametrize("name", PATHS)
def test_every_value_is_published_or_a_declared_difference(name):
    assert published.faults(PATHS[name], TABLE) == []


def test_the_table_has_no_recipe_without_a_yaml():
    assert TABLE["recipes"].keys() == PATHS.keys()


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ("temperature: 0.07", "temperature: 0.05"),
        ("symmetric: False", "symmetric: False\n    margin: 0.1"),
        ("schedules.exponential", "schedules.cosine"),
        ("rir: 0.5, noise: 0.5", "rir: 0.5, noise: 0.4"),
    ],
)
def test_a_changed_value_is_found(before, after, tmp_path):
    text = PATHS["train_moco"].read_text()
    assert before in text
    path = tmp_path / "train_moco.yaml"
    path.write_text(text.replace(before, after))
    assert len(published.faults(path, TABLE)) == 1


def test_a_setting_that_is_left_out_is_the_default_of_its_class():
    table = published.read_table()
    settings = table["recipes"]["train_dino"]["settings"]
    settings["objective.student_temperature"]["published"] = 0.2
    (fault,) = published.faults(PATHS["train_dino"], table)
    assert fault.startswith("objective.student_temperature")


def test_the_tables_of_the_readme_are_those_of_the_yaml():
    """If this fails: python -m tests.recipes.published."""
    text = published.README.read_text()
    assert text == published.readme_with_tables(TABLE)


def warmup_cosine(base, final, epochs, warmup=0):
    """cosine_scheduler of DINO's utils.py, which three codes have copied."""
    ramp = np.linspace(0, base, warmup * STEPS) if warmup else np.array([])
    i = np.arange(epochs * STEPS - len(ramp))
    curve = final + 0.5 * (base - final) * (1 + np.cos(np.pi * i / len(i)))
    return np.concatenate([ramp, curve])


def wespeaker_exponential(initial, final, epochs, warmup, ratio):
    """ExponentialDecrease with warm_from_zero of WeSpeaker's schedulers.py."""
    rates = []
    for i in range(epochs * STEPS):
        rate = initial * math.exp(
            i / (epochs * STEPS) * math.log(final / initial)
        )
        ramp = i / (warmup * STEPS) if i < warmup * STEPS else 1.0
        rates.append(rate * ratio * ramp)
    return np.array(rates)


def by_epoch(values):
    return np.repeat(values, STEPS)


def sslsv(epochs):
    return by_epoch([1e-3 * 0.95 ** (epoch // 5) for epoch in range(epochs)])


def sslsv_dino(epochs, warmup=10):
    """update_optim of sslsv's DINO: a cosine of the training's length, cut."""
    i = np.arange(epochs * STEPS)
    curve = 1e-5 + 0.5 * (0.2 - 1e-5) * (1 + np.cos(np.pi * i / len(i)))
    ramp = np.linspace(0, 0.2, warmup * STEPS)
    return np.concatenate([ramp, curve])[: epochs * STEPS]


def wavlm(epochs):
    return by_epoch([5e-3 * 0.95**epoch for epoch in range(epochs)])


# learning rate of each iteration, for a number of utterances in a step
RATES = {
    "train_moco": lambda batch: wespeaker_exponential(
        0.1, 5e-5, 150, 6, batch / 64
    ),
    "train_moco_sslsv": lambda batch: sslsv(100),
    "train_simclr": lambda batch: sslsv(100),
    "train_simclr_wespeaker": lambda batch: wespeaker_exponential(
        0.1, 5e-5, 150, 6, batch / 64
    ),
    "train_ssps": lambda batch: sslsv(120),
    "train_vicreg": lambda batch: sslsv(100),
    "train_supervised": lambda batch: sslsv(100),
    "train_dino": lambda batch: warmup_cosine(
        0.2 * batch / 256, 5e-5 * batch / 256, 150, 20
    ),
    "train_dino_sslsv": lambda batch: sslsv_dino(100),
    "train_ca_dino": lambda batch: warmup_cosine(
        0.2 * batch / 256, 5e-5 * batch / 256, 150, 20
    ),
    "train_rdino": lambda batch: warmup_cosine(0.4 * batch / 256, 1e-5, 70, 10),
    "train_sdpn": lambda batch: warmup_cosine(0.4 * batch / 256, 1e-5, 150, 10),
    "train_lgl_stage1": lambda batch: by_epoch(
        [1e-3 * 0.95 ** (epoch // 5) for epoch in range(80)]
    ),
    "train_lgl": lambda batch: np.full(15 * STEPS, 1e-3),
    "train_ungated": lambda batch: np.full(15 * STEPS, 1e-3),
    "train_wavlm_mhfa": lambda batch: wavlm(15),
    "train_lmft": lambda batch: wavlm(5),
}
MOMENTA = {
    "train_moco": np.full(150 * STEPS, 0.999),
    "train_moco_sslsv": np.full(100 * STEPS, 0.999),
    "train_dino": warmup_cosine(0.996, 1, 150),
    "train_dino_sslsv": warmup_cosine(0.996, 1, 100),
    "train_ca_dino": warmup_cosine(0.996, 1, 150),
    "train_rdino": warmup_cosine(0.996, 1, 70),
    "train_sdpn": warmup_cosine(0.996, 1, 150),
}
ramp_of_temperature = by_epoch(
    np.concatenate([np.linspace(0.04, 0.07, 30), np.full(120, 0.07)])
)
OTHERS = {
    ("train_dino", "objective.teacher_temperature"): ramp_of_temperature,
    ("train_ca_dino", "objective.teacher_temperature"): ramp_of_temperature,
    ("train_rdino", "objective.weight"): by_epoch(
        np.concatenate([np.linspace(0.05, 0.2, 10), np.full(60, 0.2)])
    ),
}


@functools.lru_cache
def settings_of(name):
    return published.settings_of(PATHS[name])


def epochs_of(name):
    """Fractional epoch of each iteration, as the brain counts."""
    count = settings_of(name)["number_of_epochs"]
    return [e + step / STEPS for e in range(count) for step in range(STEPS)]


def simulate(name, place, **facts):
    value = published.build(PATHS[name], place)
    return np.array([at(value, epoch, **facts) for epoch in epochs_of(name)])


@pytest.mark.parametrize("processes", [1, 4, 8])
@pytest.mark.parametrize("name", RATES)
def test_learning_rates_equal_the_published_ones(name, processes):
    ours = settings_of(name)
    batch = processes * ours["batch_size"]
    scale = lr_factor(ours["lr_for"], batch, ours["reference_batch"])
    facts = {"steps_per_epoch": STEPS, "scale": scale}
    rates = simulate(name, "lr_schedule", **facts)
    rates = rates * float(ours["opt_class.lr"]) * scale
    np.testing.assert_allclose(rates, RATES[name](batch), rtol=1e-6)


@pytest.mark.parametrize("name", MOMENTA)
def test_momenta_of_teachers_equal_the_published_ones(name):
    found = simulate(name, "teacher.momentum")
    np.testing.assert_allclose(found, MOMENTA[name], rtol=1e-6)


@pytest.mark.parametrize(("name", "place"), OTHERS)
def test_other_schedules_equal_the_published_ones(name, place):
    found = simulate(name, place)
    np.testing.assert_allclose(found, OTHERS[name, place], rtol=1e-6)


def test_every_learning_rate_is_compared_or_has_no_public_value():
    assert PATHS.keys() - RATES.keys() == {"train_dlg_lc"}


# published: the same in every iteration
DECAYS = {
    "train_moco": (1e-4, True),
    "train_simclr_wespeaker": (1e-4, True),
    "train_dino": (5e-5, False),
    "train_dino_sslsv": (5e-5, False),
    "train_ca_dino": (5e-5, False),
    "train_rdino": (5e-5, False),
    "train_sdpn": (5e-5, False),
    "train_wavlm_mhfa": (0.01, True),
    "train_lmft": (0.01, True),
}


@pytest.mark.parametrize("name", RATES)
def test_weight_decays_equal_the_published_ones(name):
    ours = settings_of(name)
    decay, vectors = DECAYS.get(name, (0.0, False))
    assert float(ours["opt_class.weight_decay"]) == pytest.approx(decay)
    assert ours["decay_vectors"] is vectors
