"""Every group is clipped; vectors do not decay."""

import pytest
import torch

from speechbrain_ssl.nnet.parameters import clip_gradients, parameter_groups


def with_gradients(*norms):
    parameters = []
    for norm in norms:
        parameter = torch.nn.Parameter(torch.zeros(4))
        parameter.grad = torch.full((4,), norm / 2)
        parameters.append(parameter)
    return parameters


def norms(parameters):
    return [round(p.grad.norm().item(), 4) for p in parameters]


def test_all_tensors_are_clipped_together():
    parameters = with_gradients(3.0, 4.0)
    assert clip_gradients(parameters, 1.0).item() == pytest.approx(5.0)
    assert norms(parameters) == [0.6, 0.8]


def test_small_gradients_are_left_alone():
    parameters = with_gradients(0.3, 0.4)
    clip_gradients(parameters, 1.0)
    assert norms(parameters) == [0.3, 0.4]


def test_each_tensor_can_be_clipped_alone():
    parameters = with_gradients(8.0, 0.5)
    clip_gradients(parameters, 3.0, each=True)
    assert norms(parameters) == [3.0, 0.5]


def test_tensors_without_gradient_are_passed_over():
    parameters = [*with_gradients(2.0), torch.nn.Parameter(torch.zeros(4))]
    clip_gradients(parameters, 1.0)
    assert norms(parameters[:1]) == [1.0]


@pytest.mark.parametrize("limit", [0.0, -1.0, float("nan")])
def test_a_limit_that_would_climb_the_loss_is_refused(limit):
    with pytest.raises(ValueError, match="max_grad_norm"):
        clip_gradients(with_gradients(1.0), limit)


def test_vectors_do_not_decay_and_frozen_tensors_are_left_out():
    net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    net[0].bias.requires_grad_(False)
    matrices, vectors = parameter_groups(net)
    assert [p.ndim for p in matrices["params"]] == [2]
    assert [p.ndim for p in vectors["params"]] == [1, 1]
    assert vectors["weight_decay"] == 0.0 and "weight_decay" not in matrices
