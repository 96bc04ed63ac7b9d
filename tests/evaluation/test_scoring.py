"""Cosine scores and AS-norm against loops over single trials."""

import numpy as np
import pytest
import torch

from speechbrain_ssl.evaluation import scoring


@pytest.fixture
def case():
    """Embeddings, and trials that leave one of them unused."""
    generator = torch.Generator().manual_seed(0)
    embeddings = 3 * torch.randn(30, 8, generator=generator)
    index = np.random.default_rng(0).integers(0, 29, (2, 700))
    return embeddings, *index


def cosine(left, right):
    """Cosine of two vectors in float64."""
    left, right = left.double(), right.double()
    return float(left @ right / (left.norm() * right.norm()))


def test_cosine_scores_equal_single_cosines_across_chunks(case):
    embeddings, enrol, test = case
    assert len(enrol) > scoring.TRIALS_PER_CHUNK
    expected = [cosine(embeddings[e], embeddings[t]) for e, t in zip(*case[1:])]
    found = scoring.cosine_scores(embeddings, enrol, test)
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, expected, atol=1e-6)
    again = scoring.cosine_scores(embeddings.numpy(), enrol, test)
    np.testing.assert_array_equal(found, again)


def test_embeddings_are_left_as_they_were(case):
    before = case[0].clone()
    scoring.cosine_scores(*case)
    assert torch.equal(case[0], before)


def slow_as_norm(scores, enrol, test, embeddings, cohort, top_n):
    """AS-norm with the cohort scored for each trial anew."""
    out = []
    for score, *sides in zip(scores, enrol, test):
        views = []
        for side in sides:
            seen = [cosine(embeddings[side], other) for other in cohort]
            seen = np.sort(seen)[-top_n:]
            views.append((score - seen.mean()) / seen.std(ddof=1))
        out.append(sum(views) / 2)
    return out


@pytest.mark.parametrize("per_chunk", [1, 90, 10**7])
def test_as_norm_equals_a_loop_over_trials(case, per_chunk, monkeypatch):
    monkeypatch.setattr(scoring, "COHORT_SCORES_PER_CHUNK", per_chunk)
    embeddings, enrol, test = case[0], case[1][:40], case[2][:40]
    cohort = torch.randn(17, 8, generator=torch.Generator().manual_seed(1))
    scores = scoring.cosine_scores(embeddings, enrol, test)
    arguments = scores, enrol, test, embeddings, cohort
    found = scoring.normalize(*arguments, "as_norm", 5)
    np.testing.assert_allclose(found, slow_as_norm(*arguments, 5), atol=1e-4)


def test_as_norm_is_symmetric(case):
    embeddings, enrol, test = case
    scores = scoring.cosine_scores(*case)
    one = scoring.normalize(
        scores, enrol, test, embeddings, embeddings, "as_norm", 10
    )
    two = scoring.normalize(
        scores, test, enrol, embeddings, embeddings, "as_norm", 10
    )
    np.testing.assert_allclose(one, two, atol=1e-5)


def test_as_norm_removes_an_offset_that_one_recording_has():
    # the second half shares a channel: its impostor scores are all higher
    generator = torch.Generator().manual_seed(0)
    embeddings = torch.randn(200, 16, generator=generator)
    embeddings[100:, 0] += 5.0
    cohort = torch.randn(200, 16, generator=generator)
    cohort[100:, 0] += 5.0
    enrol = np.r_[0:50, 100:150]
    test = np.r_[50:100, 150:200]
    raw = scoring.cosine_scores(embeddings, enrol, test)
    norm = scoring.normalize(
        raw, enrol, test, embeddings, cohort, "as_norm", 50
    )
    assert raw[50:].mean() - raw[:50].mean() > 2 * raw[:50].std()
    assert abs(norm[50:].mean() - norm[:50].mean()) < norm[:50].std()


def test_top_n_above_the_cohort_is_refused(case):
    embeddings, enrol, test = case
    message = (
        r"AS-norm needs 300 cohort utterances \(top_n\) but the cohort has 3. "
        "Lower top_n or enlarge the cohort."
    )
    with pytest.raises(ValueError, match=message):
        scoring.normalize(enrol, enrol, test, embeddings, embeddings[:3])


def test_top_n_without_a_deviation_is_refused():
    with pytest.raises(ValueError, match="at least 2"):
        scoring.check_top_n(1, 10)


def test_cohort_of_one_utterance_repeated_is_refused(case):
    embeddings, enrol, test = case
    cohort = embeddings[:1].expand(20, -1)
    with pytest.raises(ValueError, match="all equal"):
        scoring.normalize(enrol, enrol, test, embeddings, cohort, "as_norm", 10)


@pytest.mark.parametrize("value", [0.0, float("nan"), float("inf")])
def test_embeddings_without_a_direction_are_refused(case, value):
    embeddings, enrol, test = case
    embeddings[7] = value
    with pytest.raises(ValueError, match="row 7; 1 of 30"):
        scoring.cosine_scores(embeddings, enrol, test)


def test_embeddings_of_another_shape_are_refused():
    with pytest.raises(ValueError, match=r"found shape \[2, 1, 3\]"):
        scoring.unit(torch.ones(2, 1, 3))


def test_cohort_of_another_encoder_is_refused(case):
    embeddings, enrol, test = case
    with pytest.raises(ValueError, match="found 8 and 9 dimensions"):
        scoring.normalize(
            enrol, enrol, test, embeddings, torch.rand(20, 9), "s_norm"
        )


@pytest.mark.parametrize(
    ("norm", "kept"),
    [("z_norm", [0]), ("t_norm", [1]), ("s_norm", [0, 1])],
)
def test_norms_use_the_whole_cohort_of_their_sides(case, norm, kept):
    embeddings, enrol, test = case
    cohort = torch.randn(12, 8)
    scores = scoring.cosine_scores(embeddings, enrol, test)
    found = scoring.normalize(
        scores, enrol, test, embeddings, cohort, norm, top_n=3
    )
    for trial in range(0, 700, 100):
        sides = embeddings[enrol[trial]], embeddings[test[trial]]
        views = []
        for side in (sides[n] for n in kept):
            seen = np.array([cosine(side, other) for other in cohort])
            views.append((scores[trial] - seen.mean()) / seen.std(ddof=1))
        assert found[trial] == pytest.approx(np.mean(views), abs=1e-4)


def test_with_all_of_the_cohort_as_norm_is_s_norm(case):
    cohort = torch.randn(12, 8)
    arguments = scoring.cosine_scores(*case), *case[1:], case[0], cohort
    one = scoring.normalize(*arguments, "as_norm", 12)
    np.testing.assert_array_equal(one, scoring.normalize(*arguments, "s_norm"))


def test_an_unknown_norm_is_refused_with_the_list(case):
    embeddings, enrol, test = case
    with pytest.raises(ValueError, match="z_norm, .*found 'a_norm'"):
        scoring.normalize(enrol, enrol, test, embeddings, embeddings, "a_norm")
