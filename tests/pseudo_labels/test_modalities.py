"""Voice and face together: gates and fused correction against slow formulas."""

import math

import numpy as np
import pytest
import torch

from speechbrain_ssl.pseudo_labels import modalities
from speechbrain_ssl.pseudo_labels.gating import MixtureGate
from speechbrain_ssl.pseudo_labels.loss import AAMSoftmax, GatedLoss

MARGIN, SCALE, TEMPERATURE, THRESHOLD = 0.2, 10.0, 0.7, 0.35


def slow_step(cosines, labels, clean, gates, present, rule):
    """Loss and decisions of each modality, one clip after another."""
    classes, batch = cosines[0].shape[1], len(labels)
    totals, counts, decided = [0.0, 0.0], [0, 0], [[], []]
    for row in range(batch):
        losses, votes, posteriors = [], [], []
        for m in (0, 1):
            logits = [SCALE * c for c in cosines[m][row].tolist()]
            angle = math.acos(cosines[m][row, labels[row]]) + MARGIN
            logits[labels[row]] = SCALE * math.cos(angle)
            norm = math.log(sum(math.exp(x) for x in logits))
            losses.append(norm - logits[labels[row]])
            votes.append(math.log(losses[m]) <= gates[m])
            sharp = [
                math.exp(SCALE * c / TEMPERATURE)
                for c in clean[m][row].tolist()
            ]
            posteriors.append([x / sum(sharp) for x in sharp])
        here = [m for m in (0, 1) if present[m][row]]
        fused = [
            sum(posteriors[m][k] for m in here) / len(here)
            for k in range(classes)
        ]
        new = max(range(classes), key=fused.__getitem__)
        for m in (0, 1):
            if m not in here:
                decided[m].append(None)
                continue
            if rule == "own":
                selected = votes[m]
            elif rule == "both":
                selected = all(votes[k] for k in here)
            else:
                selected = any(votes[k] for k in here)
            learned = None
            if selected:
                learned, totals[m] = labels[row], totals[m] + losses[m]
            elif fused[new] > THRESHOLD:
                logits = [SCALE * c for c in cosines[m][row].tolist()]
                angle = math.acos(cosines[m][row, new]) + MARGIN
                logits[new] = SCALE * math.cos(angle)
                norm = math.log(sum(math.exp(x) for x in logits))
                learned, totals[m] = new, totals[m] + norm - logits[new]
            counts[m] += learned is not None
            decided[m].append((selected, learned))
    return [t / max(n, 1) for t, n in zip(totals, counts)], decided


@pytest.mark.parametrize("rule", modalities.SELECTIONS)
def test_selection_and_fused_correction_are_those_of_the_slow_formula(rule):
    rng = torch.Generator().manual_seed(4)
    cosines, clean = (
        [(torch.rand(40, 5, generator=rng) * 1.6 - 0.8) for _ in (0, 1)]
        for _ in (0, 1)
    )
    labels = torch.randint(5, (40,), generator=rng)
    present = [torch.ones(40).bool(), torch.rand(40, generator=rng) < 0.7]
    gates = [0.9, 1.2]
    loss = GatedLoss(
        AAMSoftmax(MARGIN, SCALE),
        correct_from=0.0,
        temperature=TEMPERATURE,
        threshold=THRESHOLD,
    )
    gated = [
        loss.loss_logs(c, labels, 0.0) <= gate
        for c, gate in zip(cosines, gates)
    ]
    selected = modalities.select(gated, present, rule)
    fused = modalities.fuse([loss.predict(c, 0.0)[0] for c in clean], present)
    slow, decided = slow_step(
        cosines, labels.tolist(), clean, gates, present, rule
    )
    seen = set()
    for m in (0, 1):
        value, decisions, stats = loss(
            cosines[m],
            labels,
            None,
            selected[m],
            0.0,
            posterior=fused,
            present=present[m],
        )
        assert float(value) == pytest.approx(slow[m], rel=1e-4)
        for row, expected in enumerate(decided[m]):
            if expected is None:
                assert decisions.loss_log[row].isnan()
                assert not (decisions.selected | decisions.corrected)[row]
                continue
            assert bool(decisions.selected[row]) == expected[0]
            learned = bool((decisions.selected | decisions.corrected)[row])
            assert learned == (expected[1] is not None)
            if learned:
                assert int(decisions.label[row]) == expected[1]
            seen.add((expected[0], learned))
        share = sum(x is not None and x[0] for x in decided[m])
        assert float(stats["selected"]) == pytest.approx(
            share / int(present[m].sum())
        )
    assert seen == {(True, True), (False, True), (False, False)}


def test_missing_faces_have_no_gradient():
    cosines = torch.zeros(3, 4, requires_grad=True)
    present = torch.tensor([True, False, True])
    value, *_ = GatedLoss(AAMSoftmax())(
        cosines,
        torch.tensor([0, 1, 2]),
        None,
        present,
        0.0,
        present=present,
    )
    value.backward()
    assert cosines.grad[1].eq(0).all() and cosines.grad[0].ne(0).any()


def test_posterior_of_speeds_sums_to_that_of_classes():
    torch.manual_seed(0)
    voice = torch.rand(6, 3 * 4).softmax(1)
    classes = modalities.without_speeds(voice, 4)
    slow = voice[:, :4] + voice[:, 4:8] + voice[:, 8:]
    assert torch.allclose(classes, slow)
    back = modalities.at_speed(classes, torch.tensor([0, 1, 2] * 2), 3)
    assert torch.allclose(modalities.without_speeds(back, 4), classes)
    assert torch.equal(back[1, 4:8], classes[1]) and back[1, :4].eq(0).all()


@pytest.mark.parametrize("share", [0.1, 0.2, 0.4])
def test_gate_and_correction_reject_shuffled_faces(share):
    """Faces of random other people: their clips lose the label there."""
    rng = np.random.default_rng(0)
    people, clips, dim = 20, 1000, 24
    truth = rng.integers(people, size=clips)
    face_of = truth.copy()
    wrong = rng.random(clips) < share
    face_of[wrong] = (
        truth[wrong] + rng.integers(1, people, wrong.sum())
    ) % people
    centers = [
        torch.nn.functional.normalize(
            torch.from_numpy(rng.standard_normal((people, dim))).float(), dim=1
        )
        for _ in (0, 1)
    ]
    points = [
        torch.nn.functional.normalize(
            center[who]
            + 0.12
            * torch.from_numpy(rng.standard_normal((clips, dim))).float(),
            dim=1,
        )
        for center, who in zip(centers, (truth, face_of))
    ]
    labels = torch.from_numpy(truth)
    loss = GatedLoss(AAMSoftmax(), correct_from=0.0, temperature=1.0)
    cosines = [p @ c.T for p, c in zip(points, centers)]
    gates = [MixtureGate(1.5), MixtureGate(1.5)]
    logs = [loss.loss_logs(c, labels, 0.0) for c in cosines]
    for gate, values in zip(gates, logs):
        gate.fit(values)
    present = [torch.ones(clips).bool()] * 2
    gated = [gate(values) for gate, values in zip(gates, logs)]
    voice, face = modalities.select(gated, present, "own")
    rejected = ~face.numpy()
    assert (rejected & wrong).sum() / wrong.sum() > 0.95
    assert (rejected & wrong).sum() / rejected.sum() > 0.95
    # the voice's own gate does not care about faces
    kept = [voice[wrong].float().mean(), voice[~wrong].float().mean()]
    assert abs(kept[0] - kept[1]) < 0.1 and min(kept) > 0.7
    both, _ = modalities.select(gated, present, "both")
    assert both[wrong].float().mean() < 0.05
    # voice and face disagree: half the mass each, so nothing is confident
    fused = modalities.fuse([loss.predict(c, 0.0)[0] for c in cosines], present)
    confident = fused.max(1).values > 0.6
    assert confident[wrong].float().mean() < 0.05
    assert confident[~torch.from_numpy(wrong)].float().mean() > 0.9
