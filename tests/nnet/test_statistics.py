"""Running statistics that a spoiled batch has no part in."""

import torch

from speechbrain_ssl.nnet.statistics import RunningStatistics


class Objective(torch.nn.Module):
    """Has a queue of its own and a predictor with BatchNorm."""

    def __init__(self):
        super().__init__()
        self.register_buffer("queue", torch.zeros(3, 2))
        self.predictor = torch.nn.BatchNorm1d(2)

    def commit(self, student, teacher):
        self.queue.fill_(1.0)


def test_statistics_come_back_and_queues_stay():
    net = torch.nn.ModuleDict(
        {"objective": Objective(), "norm": torch.nn.BatchNorm1d(2)}
    )
    objective = net["objective"]
    statistics = RunningStatistics(net)
    for norm in (objective.predictor, net["norm"]):
        norm(torch.randn(4, 2))
    wanted = {k: v.clone() for k, v in net.state_dict().items()}
    statistics.keep()
    for norm in (objective.predictor, net["norm"]):
        norm(torch.full((4, 2), torch.nan))
    objective.commit(None, None)
    statistics.restore()
    state = net.state_dict()
    assert (state.pop("objective.queue") == 1.0).all()
    for name, value in state.items():
        assert torch.equal(value, wanted[name]), name


def test_a_buffer_that_is_assigned_anew_comes_back():
    norm = torch.nn.BatchNorm1d(2)
    statistics = RunningStatistics(norm)
    statistics.keep()
    norm.running_mean = torch.full((2,), torch.nan)
    statistics.restore()
    assert norm.running_mean.tolist() == [0.0, 0.0]
    norm.running_mean = torch.ones(2)
    statistics.keep()
    norm.running_mean = torch.zeros(2)
    statistics.restore()
    assert norm.running_mean.tolist() == [1.0, 1.0]


def test_networks_without_statistics_are_left_alone():
    statistics = RunningStatistics(torch.nn.Linear(2, 2))
    statistics.keep()
    statistics.restore()
    assert statistics.buffers() == []
