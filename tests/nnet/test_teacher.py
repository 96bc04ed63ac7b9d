"""A teacher follows, and nothing follows it."""

import torch

from speechbrain_ssl.nnet.teacher import EMATeacher


def student():
    return torch.nn.Sequential(torch.nn.Linear(3, 3), torch.nn.BatchNorm1d(3))


def test_starts_equal_and_follows_by_the_formula():
    net = student()
    teacher = EMATeacher(net, momentum=0.9)
    old = [p.clone() for p in teacher.network.parameters()]
    assert all(map(torch.equal, old, net.parameters()))
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.add_(1.0)
    teacher.update(net, epoch=0.0)
    for mine, before, theirs in zip(
        teacher.network.parameters(), old, net.parameters()
    ):
        assert torch.allclose(mine, 0.9 * before + 0.1 * theirs)


def test_momentum_may_be_a_schedule():
    net = student()
    teacher = EMATeacher(net, momentum=lambda epoch: min(epoch, 1.0))
    with torch.no_grad():
        net[0].weight.add_(1.0)
    before = teacher.network[0].weight.clone()
    teacher.update(net, epoch=1.0)
    assert torch.equal(teacher.network[0].weight, before)
    teacher.update(net, epoch=0.0)
    assert torch.allclose(teacher.network[0].weight, net[0].weight)


def test_buffers_are_its_own():
    net = student()
    teacher = EMATeacher(net, momentum=0.0)
    net(torch.randn(8, 3) + 5)
    teacher.update(net, epoch=0.0)
    assert teacher.network[1].running_mean.abs().max() == 0
    teacher.reset(net)
    assert torch.equal(teacher.network[1].running_mean, net[1].running_mean)


def test_no_gradient_reaches_it():
    teacher = EMATeacher(student(), momentum=0.9)
    assert not any(p.requires_grad for p in teacher.parameters())
    assert not teacher(torch.randn(4, 3)).requires_grad
