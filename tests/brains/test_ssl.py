"""Stage one: it learns, and a collapse is said."""

import logging

import numpy as np
import pytest
import torch

from speechbrain_ssl.clustering.kmeans import KMeans
from speechbrain_ssl.clustering.table import ClusterPartners, ClusterTable
from speechbrain_ssl.dataio.views import ViewSampler
from speechbrain_ssl.nnet.branch import BranchOutput
from speechbrain_ssl.objectives.deep_cluster import DeepCluster
from speechbrain_ssl.objectives.simclr import SimCLR
from tests.brains import tiny
from tests.brains.test_base import Interrupted, Watching
from tests.brains.tiny import records, run


def test_two_epochs_leave_a_log_and_checkpoints(corpus, tmp_path):
    brain = run(corpus, tmp_path, encoder=tiny.ecapa)
    first, second = records(tmp_path)
    assert (first["step"], second["step"]) == (4, 8)
    assert second["train"]["loss"] > 0
    assert second["train"]["effective_rank"] > 1
    assert second["seconds"] > first["seconds"]
    assert not tiny.unexplained(tmp_path)
    assert len(brain.checkpointer.list_checkpoints()) == 2


def cosines(first, second):
    """Cosines of rows, by their definition."""
    first, second = first.detach().numpy(), second.detach().numpy()
    norms = np.linalg.norm(first, axis=-1) * np.linalg.norm(second, axis=-1)
    return (first * second).sum(-1) / norms


@pytest.mark.parametrize("local", [0, 2])
def test_agreement_with_the_teacher_is_the_mean_cosine_of_the_same_views(
    corpus, tmp_path, local
):
    brain = tiny.make_brain(corpus, str(tmp_path))
    brain.step, brain.steps_per_epoch = 1, 1
    student = BranchOutput(
        torch.randn(2 + local, 3, 6), torch.randn(2, 3, tiny.DIM)
    )
    teacher = BranchOutput(torch.randn(2, 3, 6), torch.randn(2, 3, tiny.DIM))
    stats = brain.compute_objectives((student, teacher), None, None).stats
    wanted = cosines(student.embedding[:2], teacher.embedding).mean()
    assert stats["teacher_agreement"].item() == pytest.approx(wanted, abs=1e-6)
    assert "view_agreement" not in stats


def test_agreement_of_views_is_the_mean_cosine_to_the_first_one(
    corpus, tmp_path
):
    objective = SimCLR(temperature=0.3)
    brain = tiny.make_brain(corpus, str(tmp_path), objective=objective)
    brain.step, brain.steps_per_epoch = 1, 1
    views = BranchOutput(torch.randn(3, 4, 6), torch.randn(3, 4, tiny.DIM))
    stats = brain.compute_objectives((views, None), None, None).stats
    wanted = cosines(views.embedding[:1], views.embedding[1:]).mean()
    assert stats["view_agreement"].item() == pytest.approx(wanted, abs=1e-6)
    assert "teacher_agreement" not in stats


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


def test_warnings_of_the_objective_reach_the_log(corpus, tmp_path):
    objective = SimCLR()
    objective.warnings = lambda stats: [f"loss {stats['loss'] > 0}"]
    run(corpus, tmp_path, objective=objective, epochs=1)
    assert records(tmp_path)[0]["warnings"][-1:] == ["loss True"]


def cluster_aware(start=1.0, **settings):
    """Settings of a run whose views come from clusters."""
    table = ClusterTable(KMeans(), clusters=3, start=start, every=2)
    partners = ClusterPartners(table)
    sampler = ViewSampler(16000, 2, 0.1, seed=3, partners=partners)
    return {"cluster_tables": [table], "view_sampler": sampler, **settings}


def test_clusters_are_made_at_their_epochs_and_change_training(
    corpus, tmp_path
):
    settings = cluster_aware(epochs=4)
    aware = run(corpus, tmp_path / "aware", **settings)
    plain = run(corpus, tmp_path / "plain", epochs=4)
    logs = [records(tmp_path / name) for name in ("aware", "plain")]
    made = ["cluster_count" in record["train"] for record in logs[0]]
    assert made == [False, True, False, True]
    losses = [[record["train"]["loss"] for record in log] for log in logs]
    assert losses[0][0] == losses[1][0] and losses[0][1] != losses[1][1]
    assert set(settings["cluster_tables"][0].labels.tolist()) == {0, 1, 2}
    assert aware.modules.training and plain.modules.training


def test_a_run_does_not_go_on_with_other_utterances(tmp_path):
    tiny.write_corpus(tmp_path)
    tiny.run(tmp_path, tmp_path / "out", epochs=1)
    lines = (tmp_path / "train.csv").read_text().splitlines()
    lines[1], lines[2] = lines[2], lines[1]
    (tmp_path / "train.csv").write_text("\n".join(lines) + "\n")
    with pytest.raises(ValueError, match="other utterances"):
        tiny.run(tmp_path, tmp_path / "out", epochs=2)


def test_each_of_several_tables_is_in_the_log(corpus, tmp_path):
    settings = cluster_aware(start=0.0, epochs=1)
    (first,) = settings["cluster_tables"]
    second = ClusterTable(KMeans(), clusters=2, start=0.0, min_agreement=0.0)
    settings["cluster_tables"] = [first, second]
    run(corpus, tmp_path, **settings)
    stats = records(tmp_path)[0]["train"]
    counts = [stats[f"cluster_{n}_count"] for n in (1, 2)]
    assert counts == [3.0, 2.0]
    assert "cluster_count" not in stats
    assert not tiny.unexplained(tmp_path)


@pytest.mark.parametrize("stop_at", [5, 6])
def test_a_cluster_aware_run_resumes_with_the_same_bits(
    corpus, tmp_path, stop_at
):
    def objective(settings):
        return {"objective": DeepCluster(settings["cluster_tables"])}

    whole = cluster_aware(start=0.0, epochs=3)
    wanted = run(corpus, tmp_path / "whole", **whole, **objective(whole))
    first = cluster_aware(start=0.0, epochs=3)
    cut = {"brain_class": Watching, "ckpt_interval_steps": 1}
    brain = tiny.make_brain(
        corpus, str(tmp_path / "cut"), **first, **objective(first), **cut
    )
    brain.stop_at = stop_at
    with pytest.raises(Interrupted):
        tiny.fit(brain)
    second = cluster_aware(start=0.0, epochs=3)
    found = run(corpus, tmp_path / "cut", **second, **objective(second))
    labels = [s["cluster_tables"][0].labels for s in (whole, second)]
    assert torch.equal(*labels)
    for name, value in tiny.state_of(wanted).items():
        assert torch.equal(tiny.state_of(found)[name], value), name


def test_objectives_are_called_in_float32_whatever_the_precision(
    corpus, tmp_path
):
    class Witness(SimCLR):
        def forward(self, student, teacher, epoch):
            product = student.projection.float() @ torch.ones(tiny.DIM, 1)
            seen.append((torch.is_autocast_enabled("cpu"), product.dtype))
            return super().forward(student, teacher, epoch)

    seen = []
    run(corpus, tmp_path, objective=Witness(), precision="bf16", epochs=1)
    assert set(seen) == {(False, torch.float32)}
