"""Gates on losses of toy mixtures."""

import math
import sys

import numpy as np
import pytest
import torch
from speechbrain.utils.checkpoints import Checkpointer

from speechbrain_ssl.pseudo_labels.gating import (
    Decision,
    FixedGate,
    MixtureGate,
    crossing,
)
from tests.pseudo_labels import reference
from tests.test_distributed import run

rng = np.random.default_rng


def normal(*parts):
    """Numbers of Gaussians given as (count, mean, deviation)."""
    draw = rng(0).normal
    return np.concatenate([draw(m, s, n) for n, m, s in parts])


BIMODAL = normal((24000, -3, 1.2), (16000, 1.2, 0.6))
UNIMODAL = normal((40000, 1, 0.5))
# losses of 7.7: what is decided, by a word of the reason
TOYS = {
    "bimodal": (BIMODAL, ""),
    "heavy tail": (normal((38800, -3, 0.8), (1200, 1.2, 0.9)), ""),
    "overlap": (normal((24000, -2, 1), (16000, 0.5, 0.9)), ""),
    "unimodal": (UNIMODAL, "BIC"),
    "skew": (np.log(rng(0).gamma(2.0, 1.5, 40000)), "D is"),
    "narrow in wide": (normal((20000, 0, 0.2), (20000, 0, 2)), "D is"),
    "minority": (normal((39600, 1, 0.6), (400, -4, 0.5)), "weight"),
    "zeros": (normal((39200, 1.2, 0.6), (800, -27.6, 0)), "weight"),
    "constant": (np.full(40000, 0.7), "all losses are equal"),
}
GOLDEN = [
    ((0.5, 0.5), (-2, 2), (1, 1), 0.0),
    ((0.7, 0.3), (-2, 2), (1, 1), 0.21182),
    ((0.6, 0.4), (-3, 1.2), (1.5**0.5, 0.4**0.5), -0.27701),
]


@pytest.mark.parametrize("weights, means, deviations, golden", GOLDEN)
def test_crossing_is_the_golden_one(weights, means, deviations, golden):
    found = crossing(weights, means, deviations)
    assert found == pytest.approx(golden, abs=1e-5)
    slow = reference.crossing(weights, means, deviations)
    assert found == pytest.approx(slow, abs=1e-9)
    swapped = (x[::-1] for x in (weights, means, deviations))
    assert crossing(*swapped) == pytest.approx(golden, abs=1e-5)


def test_nearly_equal_deviations_cross_where_equal_ones_do():
    found = crossing((0.7, 0.3), (-2.0, 2.0), (1.0, 1.0 + 1e-12))
    assert found == pytest.approx(math.log(7 / 3) / 4, abs=1e-9)


def test_crossings_beyond_the_means_do_not_count():
    # once, at 5.1; twice, at -0.9 and 0.9 (equal means); never
    assert crossing((0.99, 0.01), (0.0, 1.0), (1.0, 1.0)) is None
    assert crossing((0.5, 0.5), (0.0, 0.0), (0.5, 2.0)) is None
    assert crossing((0.999, 0.001), (0.0, 0.1), (1.0, 0.9)) is None
    assert crossing((0.5, 0.5), (0.0, 0.0), (1.0, 1.0)) is None


@pytest.mark.parametrize("name", TOYS)
def test_toy_losses_are_accepted_or_refused(name):
    losses, refusal = TOYS[name]
    gate = MixtureGate()
    decision = gate.fit(torch.tensor(losses))
    assert decision.accepted == (not refusal)
    assert refusal in decision.reason
    assert gate.threshold == decision.threshold
    assert (decision.threshold < math.inf) == decision.accepted


@pytest.mark.parametrize("name", ["bimodal", "heavy tail", "overlap"])
def test_threshold_is_that_of_a_slow_fit_to_all_losses(name):
    losses, _ = TOYS[name]
    slow = reference.two_gaussians(losses, rounds=150)
    threshold, _, _, mixture = MixtureGate().fit(losses)
    assert threshold == pytest.approx(reference.crossing(*slow), abs=0.03)
    for mine, theirs in zip(mixture, slow):
        assert mine == pytest.approx(tuple(theirs), abs=0.02)


def test_golden_threshold_whatever_the_order():
    first = MixtureGate().fit(BIMODAL)
    assert first.threshold == pytest.approx(-0.26, abs=0.02)
    shuffled = rng(1).permutation(BIMODAL)
    assert MixtureGate().fit(shuffled) == first


def test_a_lower_group_is_selected_and_the_mask_is_monotone():
    gate = MixtureGate()
    assert gate(torch.tensor([99.0, -99.0])).all()
    gate.fit(BIMODAL)
    losses = torch.linspace(-5, 3, 50)
    mask = gate(losses)
    assert mask.dtype == torch.bool and mask.any() and not mask.all()
    assert torch.equal(mask, losses <= gate.threshold)
    gate.threshold += 1.0
    assert (gate(losses) >= mask).all() and gate(losses).sum() > mask.sum()


@pytest.mark.parametrize(
    "losses, words",
    [
        ([], "0 finite"),
        ([0.1, 5.0] * 4, "8 finite"),
        ([math.nan] * 50, "0 finite"),
        ([-math.inf] * 50, "0 finite"),
        ([1e200] * 50, "0 finite"),
        ([0.0] * 50, "equal"),
        ([1.0] * 10, "equal"),
    ],
)
def test_losses_without_a_distribution_open_the_gate(losses, words):
    decision = MixtureGate().fit(torch.tensor(losses))
    assert not decision.accepted and words in decision.reason
    assert decision.threshold == math.inf and decision.mixture is None


def test_small_odd_sets_never_raise():
    for losses in ([0.0] * 9 + [1.0], list(range(10)), [0.0, 1.0] * 5):
        assert MixtureGate().fit(torch.tensor(losses)).reason


def test_losses_that_are_not_finite_are_left_out():
    dirty = np.concatenate([[math.nan, -math.inf], BIMODAL, [math.inf]])
    assert MixtureGate().fit(dirty) == MixtureGate().fit(BIMODAL)


def test_refusals_keep_the_threshold_until_the_third_in_a_row():
    gate = MixtureGate()
    assert "no gate" in gate.fit([0.0] * 20).reason
    first = gate.fit(BIMODAL).threshold
    for _ in range(2):
        decision = gate.fit([0.0] * 20)
        assert decision.threshold == first and "stays" in decision.reason
    third = gate.fit([0.0] * 20)
    assert third.threshold == math.inf and "3 in a row" in third.reason
    # an accepted fit starts anew
    assert gate.fit(BIMODAL).threshold == first
    assert gate.fit([0.0] * 20).threshold == first
    accepted = [decision.accepted for decision in gate.decisions]
    assert accepted == [False, True, False, False, False, True, False]


def test_a_checkpoint_holds_the_gate(tmp_path):
    gate, other = MixtureGate(), MixtureGate()
    for losses in (BIMODAL, UNIMODAL, [0.0] * 20):
        gate.fit(losses)
    Checkpointer(tmp_path, {"gate": gate}).save_checkpoint()
    Checkpointer(tmp_path, {"gate": other}).recover_if_possible()
    assert vars(other) == vars(gate)
    assert isinstance(other.decisions[0], Decision)
    assert other.fit([0.0] * 20) == gate.fit([0.0] * 20)


def test_a_million_losses_give_the_threshold_of_their_mixture():
    many = normal((654000, -3, 1.2), (436000, 1.2, 0.6))
    exact = reference.crossing((0.6, 0.4), (-3, 1.2), (1.2, 0.6))
    assert MixtureGate().fit(many).threshold == pytest.approx(exact, abs=0.02)


def test_fixed_gates_are_in_nats_and_per_round():
    losses = torch.tensor([0.5, 0.99, 1.01, 2.9, 3.1, 5.9, 6.1])
    selected = [
        FixedGate([1, 3, 3, 5, 6], n)(losses.log()).sum().item()
        for n in (0, 1, 2, 3, 4, 7)
    ]
    assert selected == [2, 4, 4, 5, 6, 6]
    gate = FixedGate(3)
    assert gate.fit(losses).threshold == gate.threshold == math.log(3)
    assert "3 nats" in gate.fit(losses).reason


def test_a_fixed_gate_may_select_all_or_none():
    losses = torch.tensor([-40.0, 3.0])
    assert FixedGate(math.inf)(losses).all()
    assert not FixedGate(0.0)(losses).any()


def test_bad_settings_are_refused():
    for bad in (-1.0, [], [1.0, -2.0], math.nan):
        with pytest.raises(ValueError, match="thresholds"):
            FixedGate(bad)
    with pytest.raises(ValueError, match="min_separation"):
        MixtureGate(-1.0)


def _gate_worker(rank, folder):
    gate = MixtureGate()
    # what the second process holds must not matter
    decision = gate.fit(BIMODAL if rank == 0 else UNIMODAL)
    refused = gate.fit([0.0] * 20 if rank == 0 else BIMODAL)
    return tuple(decision), tuple(refused), gate.failures


@pytest.mark.skipif(sys.platform != "linux", reason="file:// rendezvous")
def test_processes_decide_alike(tmp_path):
    first, second = run(_gate_worker, tmp_path)
    assert first == second
    assert first[0][1] and not first[1][1] and first[2] == 1
