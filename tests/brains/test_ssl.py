"""Stage one: it learns, and a collapse is said."""

import logging

import torch

from speechbrain_ssl.objectives.simclr import SimCLR
from tests.brains import tiny
from tests.brains.tiny import records, run


def test_two_epochs_leave_a_log_and_checkpoints(corpus, tmp_path):
    brain = run(corpus, tmp_path, encoder=tiny.ecapa)
    first, second = records(tmp_path)
    assert (first["step"], second["step"]) == (4, 8)
    assert second["train"]["loss"] > 0
    assert second["train"]["effective_rank"] > 1
    assert 0 < second["train"]["teacher_agreement"] <= 1
    assert second["seconds"] > first["seconds"]
    assert len(brain.checkpointer.list_checkpoints()) == 2


def test_training_lowers_the_loss(corpus, tmp_path):
    objective = SimCLR(temperature=0.3)
    run(corpus, tmp_path, objective=objective, epochs=8, batch_size=6)
    losses = [record["train"]["loss"] for record in records(tmp_path)]
    assert losses[-1] < losses[0]


def test_collapse_is_said_in_the_log(corpus, tmp_path, caplog):
    encoder = tiny.Pooled()
    with torch.no_grad():
        encoder.layer.weight.zero_()
        encoder.layer.bias.fill_(1.0)
    with caplog.at_level(logging.WARNING):
        run(
            corpus,
            tmp_path,
            encoder=lambda: encoder,
            epochs=1,
            lr_schedule=0.0,
        )
    assert any("Collapse" in message for message in caplog.messages)
    assert "Collapse" in records(tmp_path)[0]["warnings"][0]


def test_a_healthy_run_says_nothing_of_collapse(corpus, tmp_path):
    run(corpus, tmp_path, encoder=tiny.ecapa, epochs=1)
    assert records(tmp_path)[0]["warnings"] == []
