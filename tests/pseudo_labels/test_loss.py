"""Margins, gates and corrected labels against the formulas."""

import functools
import math
import sys

import pytest
import torch
import torch.nn.functional as F

from speechbrain_ssl.nnet.schedules import linear
from speechbrain_ssl.pseudo_labels.loss import (
    AAMSoftmax,
    Classifier,
    GatedLoss,
    cross_entropy_per_utterance,
)
from tests.pseudo_labels import reference
from tests.test_distributed import WORLD, run

AAM = AAMSoftmax(margin=0.3, scale=8.0)
STATS = [
    "accuracy",
    "confidence",
    "corrected",
    "label_changed",
    "label_loss",
    "nothing_selected",
    "selected",
]


def random_batch(batch=7, classes=5, seed=3):
    """Cosines, labels, cosines of the clean views and trust."""
    torch.manual_seed(seed)
    cosines, clean = torch.rand(2, batch, classes) * 1.98 - 0.99
    labels = torch.randint(classes, (batch,))
    return cosines, labels, clean, torch.arange(batch) % 3 == 0


def lifted(count, classes, seed=0):
    """Random logits whose label is lifted by 0 to 70."""
    torch.manual_seed(seed)
    logits = torch.randn(count, classes)
    labels = torch.randint(classes, (count,))
    logits[range(count), labels] += torch.linspace(0, 70, count)
    return logits, labels


def test_logarithms_of_losses_are_exact_where_cross_entropy_is_zero():
    logits, labels = lifted(200, 500)
    loss, loss_log = cross_entropy_per_utterance(logits, labels)
    assert (F.cross_entropy(logits, labels, reduction="none") == 0).sum() > 90
    rows = zip(logits.tolist(), labels.tolist())
    exact = torch.tensor([reference.cross_entropy(*r) for r in rows])
    assert torch.allclose(loss_log, exact[:, 1], rtol=3e-6, atol=3e-6)
    assert torch.allclose(loss, exact[:, 0], rtol=1e-5, atol=0)
    assert (loss > 0).all() and loss.dtype == torch.float32


def test_gradient_is_that_of_cross_entropy_and_finite_everywhere():
    logits, labels = lifted(50, 9)
    mine, theirs = (logits.clone().requires_grad_() for _ in range(2))
    cross_entropy_per_utterance(mine, labels)[0].sum().backward()
    F.cross_entropy(theirs, labels, reduction="sum").backward()
    assert torch.allclose(mine.grad, theirs.grad, atol=1e-6)
    mine.grad = None
    cross_entropy_per_utterance(mine, labels)[1].sum().backward()
    assert torch.isfinite(mine.grad).all()
    # d log CE / d logit is -1 where CE is all but 0
    assert mine.grad[-1, labels[-1]].item() == pytest.approx(-1.0)


def test_half_precision_logits_give_a_float32_loss():
    logits, labels = lifted(5, 4)
    loss, loss_log = cross_entropy_per_utterance(logits.bfloat16(), labels)
    assert loss.dtype == loss_log.dtype == torch.float32


@pytest.mark.parametrize("subcenters", [1, 3])
def test_aam_equals_the_written_out_formula(subcenters):
    cosines, labels, *_ = random_batch(batch=40, classes=6 * subcenters)
    labels = labels % 6
    # one of them beyond the switch
    first = subcenters * labels[0]
    cosines[0, first : first + subcenters] = -0.999
    found = AAMSoftmax(0.3, 8.0, subcenters)(cosines, labels, 0.0)
    for logits, row, label in zip(found, cosines.tolist(), labels.tolist()):
        slow = reference.aam_logits(row, label, 0.3, 8.0, subcenters)
        assert logits.tolist() == pytest.approx(slow, rel=1e-5, abs=1e-5)


def test_margin_and_scale_may_follow_the_epoch():
    rising = functools.partial(linear, start=0.0, stop=0.4, epochs=4)
    growing = functools.partial(linear, start=10.0, stop=30.0, epochs=2)
    cosines, labels, *_ = random_batch()
    moving = AAMSoftmax(rising, growing)
    for epoch, margin, scale in [(0, 0.0, 10), (1, 0.1, 20), (9, 0.4, 30)]:
        still = AAMSoftmax(margin, scale)(cosines, labels, 0.0)
        assert torch.allclose(moving(cosines, labels, epoch), still)


def test_aam_has_a_gradient_at_the_ends_of_the_cosine():
    cosines = torch.tensor([[1.0, -1.0], [-1.0, 1.0]], requires_grad=True)
    labels = torch.tensor([0, 0])
    logits = AAMSoftmax()(cosines, labels, 0.0)
    cross_entropy_per_utterance(logits, labels)[1].sum().backward()
    assert torch.isfinite(cosines.grad).all()


def test_an_untrained_classifier_has_the_published_loss():
    points = torch.randn(200, 192)
    cosines = Classifier(192, 6000)(points)
    labels = torch.randint(6000, (200,))
    logits = AAMSoftmax(0.2, 30.0)(cosines, labels, 0.0)
    loss, _ = cross_entropy_per_utterance(logits, labels)
    assert loss.mean().item() == pytest.approx(17.0, abs=0.5)


def test_classifier_compares_directions_in_float32():
    classifier = Classifier(4, 3, subcenters=2)
    points = torch.randn(5, 4)
    slow = [
        [F.cosine_similarity(x, w, dim=0).item() for w in classifier.weight]
        for x in points
    ]
    with torch.autocast("cpu", torch.bfloat16):
        found = classifier(7 * points)
    assert found.dtype == torch.float32
    assert found.tolist() == [pytest.approx(row, abs=1e-6) for row in slow]


@pytest.mark.parametrize("target", ["hard", "soft"])
@pytest.mark.parametrize("epoch", [0.0, 1.0, 2.0])
def test_gated_loss_equals_the_written_out_formula(target, epoch):
    cosines, labels, clean, selected = random_batch(batch=30)
    learn = GatedLoss(AAM, 1.0, 2.0, target, temperature=3.0, threshold=0.6)
    loss, decided, stats = learn(cosines, labels, clean, selected, epoch)
    if epoch < 1:
        selected = torch.ones_like(selected)
    tensors = cosines, labels, clean, selected
    rows = list(zip(*(x.tolist() for x in tensors)))
    slow = reference.gated(rows, epoch >= 2, target, 3.0, 0.6, 0.3, 8.0)
    assert loss.item() == pytest.approx(slow, rel=1e-5)
    for row, loss_log in zip(rows, decided.loss_log.tolist()):
        logits = reference.aam_logits(row[0], row[1], 0.3, 8.0)
        slow = reference.cross_entropy(logits, row[1])[1]
        assert loss_log == pytest.approx(slow, abs=1e-5)
    assert sorted(stats) == STATS
    assert not any(x.requires_grad or x.ndim for x in stats.values())
    assert not decided.loss_log.requires_grad


def test_an_open_gate_is_plain_training_bit_for_bit():
    cosines, labels, _, selected = random_batch()
    everyone = torch.ones_like(selected)
    plain, *_ = GatedLoss(AAM)(cosines, labels, None, everyone, 0.0)
    opened, *_ = GatedLoss(AAM)(
        cosines, labels, None, lambda x: x <= math.inf, 0.0
    )
    logits = AAM(cosines, labels, 0.0)
    assert torch.equal(plain, opened)
    assert plain.item() == pytest.approx(
        F.cross_entropy(logits, labels).item(), rel=1e-6
    )


def test_gated_utterances_get_no_gradient():
    cosines, labels, clean, selected = random_batch()
    cosines.requires_grad_()
    GatedLoss(AAM)(cosines, labels, clean, selected, 0.0)[0].backward()
    assert not cosines.grad[~selected].any()
    assert cosines.grad[selected].any(1).all()


def test_the_gate_sees_logarithms_of_losses_of_the_labels_given():
    cosines, labels, *_ = random_batch()
    seen = []

    def gate(loss_logs):
        seen.append(loss_logs)
        return loss_logs < 0

    *_, stats = GatedLoss(AAM)(cosines, labels, None, gate, 0.0)
    _, slow = cross_entropy_per_utterance(AAM(cosines, labels, 0.0), labels)
    assert torch.equal(seen[0], slow)
    assert stats["selected"] == (slow < 0).float().mean()


def test_offsets_weight_the_classes_that_are_not_learned():
    generator = torch.Generator().manual_seed(5)
    cosines = torch.rand(4, 6, generator=generator) * 1.6 - 0.8
    labels = torch.tensor([0, 5, 2, 2])
    weights = torch.rand(4, 6, generator=generator) + 0.1
    aam = AAMSoftmax(0.2, 30.0)
    opened = torch.ones(4, dtype=torch.bool)
    found, decisions, _ = GatedLoss(aam)(
        cosines, labels, None, opened, 1.0, offsets=weights.log()
    )
    logit = aam(cosines, labels, 1.0)
    weights[torch.arange(4), labels] = 1.0
    powers = weights * logit.exp()
    slow = -(powers.gather(1, labels[:, None])[:, 0] / powers.sum(1)).log()
    assert torch.allclose(found, slow.mean())
    assert torch.allclose(decisions.loss_log, slow.log(), atol=1e-5)
    logs = GatedLoss(aam).loss_logs(cosines, labels, 1.0, weights.log())
    assert torch.allclose(logs, decisions.loss_log)


@pytest.mark.parametrize("margin_on", ["learned", "given"])
def test_a_corrected_label_has_no_offset(margin_on):
    cosines, clean = torch.tensor([[0.1, 0.3]]), torch.tensor([[0.0, 0.9]])
    shut, labels = torch.zeros(1, dtype=torch.bool), torch.tensor([0])
    learn = GatedLoss(
        AAMSoftmax(0.0, 10.0), correct_from=0.0, margin_on=margin_on
    )
    offsets = torch.tensor([[0.0, -3.0]])  # of the class that is learned
    found, decisions, _ = learn(
        cosines, labels, clean, shut, 1.0, offsets=offsets
    )
    assert decisions.label.tolist() == [1]
    expected = torch.nn.functional.cross_entropy(
        10 * cosines, torch.tensor([1])
    )
    assert torch.allclose(found, expected)


def test_nothing_selected_is_a_zero_with_zero_gradient():
    cosines, labels, clean, selected = random_batch()
    cosines.requires_grad_()
    learn = GatedLoss(AAM, correct_from=0.0, threshold=1.0, temperature=9.0)
    loss, _, stats = learn(cosines, labels, clean, selected & False, 0.0)
    loss.backward()
    assert loss.item() == 0.0 and not cosines.grad.any()
    assert stats["nothing_selected"] == 1.0
    assert stats["corrected"] == stats["selected"] == 0.0


def test_the_decision_about_each_utterance_is_returned():
    cosines, labels, clean, selected = random_batch()
    learn = GatedLoss(AAM, correct_from=0.0, threshold=0.0)
    _, decided, stats = learn(cosines, labels, clean, selected, 0.0)
    assert torch.equal(decided.selected, selected)
    assert torch.equal(decided.corrected, ~selected)
    wanted = torch.where(selected, labels, clean.argmax(1))
    assert torch.equal(decided.label, wanted)
    changed = (wanted != labels).float().mean()
    assert stats["label_changed"] == changed > 0


def test_trusted_labels_are_never_corrected():
    cosines, labels, clean, selected = random_batch()
    learn = GatedLoss(AAM, correct_from=0.0, threshold=0.0)
    everyone = torch.ones_like(selected)
    with_clean, _, stats = learn(cosines, labels, clean, everyone, 0.0)
    assert torch.equal(
        with_clean, GatedLoss(AAM)(cosines, labels, None, everyone, 0.0)[0]
    )
    assert stats["corrected"] == stats["label_changed"] == 0.0


def test_no_gradient_flows_through_the_clean_view():
    cosines, labels, clean, selected = random_batch()
    cosines.requires_grad_()
    clean.requires_grad_()
    for target in ("hard", "soft"):
        learn = GatedLoss(AAM, correct_from=0.0, target=target)
        loss, _, stats = learn(cosines, labels, clean, selected, 0.0)
        loss.backward()
        assert clean.grad is None and stats["corrected"] > 0


@pytest.mark.parametrize("target", ["hard", "soft"])
def test_correcting_to_the_same_label_changes_nothing(target):
    cosines, labels, clean, selected = random_batch()
    clean = F.one_hot(labels, 5).float()
    learn = GatedLoss(AAM, correct_from=0.0, target=target)
    loss, _, stats = learn(cosines, labels, clean, selected, 0.0)
    plain, *_ = GatedLoss(AAM)(
        cosines, labels, None, torch.ones_like(selected), 0.0
    )
    assert loss.item() == pytest.approx(plain.item(), rel=1e-6)
    assert stats["label_changed"] == 0.0
    assert stats["corrected"].item() == pytest.approx(4 / 7)


def test_the_corrected_label_carries_the_margin():
    cosines, clean = torch.tensor([[0.1, 0.6]]), torch.tensor([[0.0, 0.9]])
    nobody = torch.tensor([False])
    learn = GatedLoss(AAM, correct_from=0.0)
    loss, *_ = learn(cosines, torch.tensor([0]), clean, nobody, 0.0)
    logits = reference.aam_logits([0.1, 0.6], 1, 0.3, 8.0)
    slow, _ = reference.cross_entropy(logits, 1)
    assert loss.item() == pytest.approx(slow, rel=1e-5)


def test_shares_in_the_stats_are_counted():
    cosines = torch.eye(4)
    labels = torch.tensor([0, 1, 0, 0])
    clean = torch.stack([cosines[0], cosines[1], cosines[2], torch.zeros(4)])
    selected = torch.tensor([True, False, False, False])
    learn = GatedLoss(AAM, correct_from=0.0)
    *_, stats = learn(cosines, labels, clean, selected, 0.0)
    found = {name: round(x.item(), 3) for name, x in stats.items()}
    del found["label_loss"]
    assert found == {
        "selected": 0.25,
        "corrected": 0.5,
        "label_changed": 0.25,
        "accuracy": 0.5,
        "confidence": pytest.approx((3 + 0.25) / 4, abs=1e-3),
        "nothing_selected": 0.0,
    }


def test_a_nan_shows_even_if_its_utterance_is_gated():
    cosines, labels, _, selected = random_batch()
    cosines[1] = math.nan
    loss, *_ = GatedLoss(AAM)(cosines, labels, None, torch.arange(7) != 1, 0.0)
    assert loss.isnan()


def test_a_single_class_has_nothing_to_learn():
    cosines = torch.full((3, 1), 0.5, requires_grad=True)
    labels = torch.zeros(3, dtype=torch.long)
    learn = GatedLoss(AAMSoftmax(), correct_from=0.0)
    loss, *_ = learn(cosines, labels, cosines, labels == 1, 0.0)
    loss.backward()
    assert loss.item() == 0.0 and not cosines.grad.any()


@pytest.mark.parametrize("words", ["margin", "scale", "subcenters"])
def test_bad_settings_of_the_margin_are_refused(words):
    with pytest.raises(ValueError, match=words):
        AAMSoftmax(**{words: -1})


def test_bad_settings_of_the_loss_are_refused():
    with pytest.raises(ValueError, match="target"):
        GatedLoss(AAM, target="firm")
    with pytest.raises(ValueError, match="temperature"):
        GatedLoss(AAM, temperature=0.0)
    with pytest.raises(ValueError, match="threshold"):
        GatedLoss(AAM, threshold=1.2)
    cosines, labels, _, selected = random_batch()
    with pytest.raises(ValueError, match="clean_cosines"):
        GatedLoss(AAM, correct_from=0.0)(cosines, labels, None, selected, 0.0)
    with pytest.raises(ValueError, match="5 cosines .* 2 subcenters"):
        AAMSoftmax(subcenters=2)(cosines, labels, 0.0)


def both_halves(selected, rank=None):
    """Loss, gradient and stats of all the batch, or of one process's part."""
    cosines, labels, clean, _ = random_batch(batch=6)
    part = slice(None) if rank is None else slice(3 * rank, 3 * rank + 3)
    mine = cosines[part].requires_grad_()
    learn = GatedLoss(AAM, 0.0, 2.0, "hard", 3.0, 0.8)
    results = []
    for epoch in (0.0, 2.0):
        mine.grad = None
        loss, _, stats = learn(
            mine, labels[part], clean[part], selected[part], epoch
        )
        loss.backward()
        row = loss.detach(), mine.grad, stats["nothing_selected"]
        results.append(row)
    return results


def _gated_worker(rank, folder):
    selected = torch.tensor([True, True, False, False, False, False])
    return [both_halves(t, rank) for t in (selected, selected & False)]


@pytest.mark.skipif(sys.platform != "linux", reason="file:// rendezvous")
def test_processes_with_unequal_shares_learn_what_one_does(tmp_path):
    first, second = run(_gated_worker, tmp_path)
    selected = torch.tensor([True, True, False, False, False, False])
    for n, mask in enumerate((selected, selected & False)):
        for a, b, one in zip(first[n], second[n], both_halves(mask)):
            assert torch.allclose((a[0] + b[0]) / WORLD, one[0], rtol=1e-5)
            gradient = torch.cat([a[1], b[1]]) / WORLD
            assert torch.allclose(gradient, one[1], atol=1e-6)
            assert a[2] == b[2] == one[2]
    # gated in the second process only, and in both
    assert second[0][0][0] == 0.0 and second[0][0][2] == 0.0
    assert first[1][0][0] == 0.0 and first[1][0][2] == 1.0


@pytest.mark.parametrize("margin_on", ["learned", "given"])
@pytest.mark.parametrize("mean_over", ["learned", "batch"])
def test_the_loss_of_the_public_code_can_be_chosen(margin_on, mean_over):
    """Formula of loss/aamsoftmax.py of wavlm_ssl_sv, and ours."""
    generator = torch.Generator().manual_seed(0)
    cosines, clean = torch.rand(2, 6, 4, generator=generator) * 2 - 1
    clean = 0.1 * clean  # of some the prediction is not confident
    labels = torch.tensor([0, 1, 2, 3, 0, 1])
    trusted = torch.tensor([True, True, False, False, False, True])
    learn = GatedLoss(
        AAMSoftmax(0.2, 30.0),
        correct_from=1.0,
        temperature=1.0,
        threshold=0.55,
        margin_on=margin_on,
        mean_over=mean_over,
    )
    total, count = 0.0, 0
    for i, row in enumerate(cosines):
        probability = (30 * clean[i]).softmax(0)
        label = int(labels[i])
        margin_at, target = label, label
        if not trusted[i]:
            if probability.max() <= 0.55:
                continue
            target = int(probability.argmax())
            margin_at = target if margin_on == "learned" else label
        logits = 30 * row
        angle = torch.acos(row[margin_at]) + 0.2
        if angle < math.pi:
            logits[margin_at] = 30 * torch.cos(angle)
        else:
            logits[margin_at] = 30 * (row[margin_at] - 0.2 * math.sin(0.2))
        total -= logits.log_softmax(0)[target].item()
        count += 1
    assert 3 < count < 6  # some labels are corrected, and some are left out
    slow = total / (count if mean_over == "learned" else 6)
    loss, *_ = learn(cosines, labels, clean, trusted, 1.0)
    assert loss.item() == pytest.approx(slow, rel=1e-4)
    # before labels are corrected there is one mean
    early, *_ = learn(cosines, labels, None, trusted, 0.5)
    chosen, *_ = learn(
        cosines[trusted], labels[trusted], None, trusted[trusted], 0.5
    )
    assert early.item() == pytest.approx(chosen.item(), rel=1e-5)
