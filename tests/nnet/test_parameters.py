"""Every group is clipped; vectors do not decay."""

import pytest
import torch

from speechbrain_ssl.nnet.parameters import (
    clip_gradients,
    layerwise_rates,
    parameter_groups,
    parameters_with,
)


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


def test_vectors_do_not_decay_and_frozen_tensors_are_left_out():
    net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.BatchNorm1d(3))
    net[0].bias.requires_grad_(False)
    matrices, vectors = parameter_groups(net)
    assert [p.ndim for p in matrices["params"]] == [2]
    assert [p.ndim for p in vectors["params"]] == [1, 1]
    assert vectors["weight_decay"] == 0.0 and "weight_decay" not in matrices


def test_parts_have_learning_rates_of_their_own():
    net = torch.nn.Sequential(*(torch.nn.Linear(2, 2) for _ in range(3)))
    inner = torch.nn.Sequential(net[0], net[1])
    groups = parameter_groups(net, [[net[1], 0.5], [inner, 0.1]])
    rates = {
        id(p): group.get("lr") for group in groups for p in group["params"]
    }
    # net[1] is in both parts: the first one counts
    found = [[rates.pop(id(p)) for p in layer.parameters()] for layer in net]
    assert found == [[0.1, 0.1], [0.5, 0.5], [None, None]] and not rates
    decays = [group.get("weight_decay") for group in groups]
    assert decays == [None, 0.0] * 3


@pytest.mark.parametrize("rate", [-1.0, float("nan")])
def test_a_rate_must_not_be_negative(rate):
    net = torch.nn.Linear(2, 2)
    with pytest.raises(ValueError, match="rate from 0"):
        parameter_groups(net, [[net, rate]])


def test_a_rate_of_what_is_not_trained_is_refused():
    with pytest.raises(ValueError, match="modules that are trained"):
        parameter_groups(torch.nn.Linear(2, 2), [[torch.nn.Linear(2, 2), 1.0]])


def transformer():
    net = torch.nn.Module()
    net.front = torch.nn.Linear(2, 2)
    net.layers = torch.nn.ModuleList(torch.nn.Linear(2, 2) for _ in range(3))
    return net


def test_rates_fall_from_the_top_layer_down():
    net = transformer()
    whole = torch.nn.ModuleList([net, torch.nn.Linear(2, 1)])
    groups = parameter_groups(whole, layerwise_rates(net, 0.8, 0.5))
    rates = {
        id(p): group.get("lr") for group in groups for p in group["params"]
    }
    layers = [net.front, *net.layers, whole[1]]
    found = [{rates[id(p)] for p in layer.parameters()} for layer in layers]
    assert found == [{0.1}, {0.2}, {0.4}, {0.8}, {None}]


def test_frozen_front_ends_are_in_no_group():
    net = transformer()
    net.front.requires_grad_(False)
    groups = parameter_groups(net, layerwise_rates(net, 0.8))
    assert {group["lr"] for group in groups} == {0.8}
    assert sum(len(group["params"]) for group in groups) == 6


@pytest.mark.parametrize("decay", [0.0, 1.1, float("nan")])
def test_a_decay_that_is_none_is_refused(decay):
    with pytest.raises(ValueError, match="decay must be"):
        layerwise_rates(transformer(), 0.8, decay)


def test_vectors_decay_where_asked_for():
    (group,) = parameter_groups(torch.nn.Linear(2, 3), decay_vectors=True)
    assert [p.ndim for p in group["params"]] == [2, 1]


def test_a_matrix_can_be_left_undecayed():
    net = torch.nn.Sequential(torch.nn.Linear(2, 3), torch.nn.Linear(3, 2))
    options = [[net[1], {"decay": False}]]
    decayed, others = parameter_groups(
        net, undecayed=parameters_with(options, "decay")
    )
    assert decayed["params"] == [net[0].weight]
    assert others["weight_decay"] == 0.0 and len(others["params"]) == 3


@pytest.mark.parametrize("each", [True, False])
def test_unclipped_gradients_stay_and_count_in_the_norm(each):
    parameters = with_gradients(8.0, 6.0)
    total = clip_gradients(parameters, 3.0, each, unclipped=parameters[1:])
    assert total.item() == pytest.approx(10.0)
    assert norms(parameters) == [3.0, 6.0]


@pytest.mark.parametrize("options", [{"decays": False}, {"decay": "no"}])
def test_unknown_options_of_parameters_are_refused(options):
    with pytest.raises(ValueError, match="decay, clip, sum"):
        parameters_with([[torch.nn.Linear(1, 1), options]], "decay")
