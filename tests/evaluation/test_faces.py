"""Scores of faces and of both modalities, with faces that are missing."""

import json
import types

import numpy as np
import pytest
import torch

from speechbrain_ssl.evaluation import scoring
from speechbrain_ssl.evaluation.faces import FaceScores, read_faces
from speechbrain_ssl.evaluation.trials import read_trials
from speechbrain_ssl.evaluation.verification import verify

Image = pytest.importorskip("PIL.Image")
pytest.importorskip("torchvision")
SIZE = 4


def encode(pixels, lengths):
    return pixels.unflatten(1, (3, -1)).mean(2) - 0.4


@pytest.fixture
def case(tmp_path):
    """Four files, of which d has no face and c a damaged one beside it."""
    rng = np.random.default_rng(0)
    for name in "abe":
        pixels = rng.integers(0, 256, (6, 6, 3), np.uint8)
        Image.fromarray(pixels).save(tmp_path / f"{name}.png")
    (tmp_path / "c.png").write_bytes(b"damaged")
    for name in "abcde":
        (tmp_path / f"{name}.wav").touch()
    lines = ["1 a.wav b.wav", "0 a.wav e.wav", "1 c.wav a.wav", "0 d.wav b.wav"]
    (tmp_path / "list.txt").write_text("\n".join(lines) + "\n")
    trials = read_trials(str(tmp_path / "list.txt"))
    parts = [(str(tmp_path / name),) for name in trials.files]
    voices = torch.from_numpy(rng.standard_normal((5, 6))).float()
    return types.SimpleNamespace(
        folder=tmp_path, trials=trials, parts=parts, voices=voices
    )


def slow_cosine(a, b):
    a, b = np.asarray(a, float), np.asarray(b, float)
    return a @ b / np.sqrt((a @ a) * (b @ b))


def face_of(folder, name):
    image = np.asarray(Image.open(folder / name).resize((SIZE, SIZE)))
    return image.reshape(-1, 3).mean(0) / 255 - 0.4


def test_fused_score_is_the_weighted_mean_or_the_voice_alone(case):
    scores = FaceScores(encode, SIZE, {}, weight=0.3).scorers()
    inputs = case.voices, case.parts, case.trials
    face, fused = (scores[kind](*inputs) for kind in ("face", "fused"))
    assert np.isnan(face).tolist() == [False, False, True, True]
    slow = slow_cosine(
        face_of(case.folder, "a.png"), face_of(case.folder, "b.png")
    )
    assert face[0] == pytest.approx(slow, abs=0.02)
    rows = case.voices.numpy()
    voice = [
        slow_cosine(rows[i], rows[j])
        for i, j in zip(case.trials.enrol, case.trials.test)
    ]
    assert fused[0] == pytest.approx(0.7 * voice[0] + 0.3 * face[0])
    assert fused[2:] == pytest.approx(voice[2:])


def test_as_norm_is_that_of_each_modality(case):
    rng = torch.Generator().manual_seed(0)
    cohorts = (
        torch.randn(9, 6, generator=rng),
        torch.randn(7, 3, generator=rng),
    )
    scores = FaceScores(encode, SIZE, {}, cohorts=cohorts, top_n=5).scorers()
    inputs = case.voices, case.parts, case.trials
    face, fused = (
        scores[kind](*inputs) for kind in ("face_as_norm", "fused_as_norm")
    )
    sides = case.trials.enrol, case.trials.test
    voice = scoring.normalize(
        scoring.cosine_scores(case.voices, *sides),
        *(*sides, case.voices, cohorts[0], "as_norm", 5),
    )
    assert fused[:2] == pytest.approx((voice[:2] + face[:2]) / 2, abs=1e-5)
    assert fused[2:] == pytest.approx(voice[2:], abs=1e-5)
    assert abs(face[0]) != pytest.approx(abs(scores["face"](*inputs)[0]))


def test_table_names_faces_elsewhere(case, tmp_path):
    (tmp_path / "faces.csv").write_text("ID,face\nd.wav,e.png\n")
    table = read_faces(str(tmp_path / "faces.csv"))
    assert table == {"d.wav": str(tmp_path / "e.png")}
    scorer = FaceScores(encode, SIZE, table).scorers()["face"]
    scores = scorer(case.voices, case.parts, case.trials)
    assert np.isnan(scores).tolist() == [False, False, True, False]
    (tmp_path / "faces.csv").write_text("ID,image\n")
    with pytest.raises(ValueError, match="expected ID and face"):
        read_faces(str(tmp_path / "faces.csv"))


def test_trials_without_a_face_are_left_out_and_counted(case, tmp_path):
    import soundfile

    rng = np.random.default_rng(1)
    for name in "abcde":
        noise = 0.1 * rng.standard_normal(8000)
        soundfile.write(tmp_path / f"{name}.wav", noise, 16000)
    scorers = FaceScores(encode, SIZE, {}).scorers()
    summary = verify(
        lambda wavs, lengths: wavs[:, :5],
        str(tmp_path / "list.txt"),
        str(tmp_path / "out"),
        progress=False,
        scorers=scorers,
    )
    assert summary["raw"]["trials"] == summary["fused"]["trials"] == 4
    assert summary["face"]["trials"] == summary["face"]["without_score"] == 2
    lines = (tmp_path / "out/list/scores_face.txt").read_text().splitlines()
    assert [line.split("\t")[:3] for line in lines] == [
        ["1", "a.wav", "b.wav"],
        ["0", "a.wav", "e.wav"],
    ]
    json.loads((tmp_path / "out/list/metrics.json").read_text())


def test_face_encoder_verifies_images(tmp_path):
    """As the error rates of dev_trials while faces are trained."""
    rng = np.random.default_rng(0)
    for person in range(3):
        color = rng.integers(40, 216, 3)
        for take in range(2):
            noise = rng.integers(-20, 20, (6, 6, 3))
            pixels = (color + noise).astype(np.uint8)
            Image.fromarray(pixels).save(tmp_path / f"{person}_{take}.png")
    lines = [f"1 {p}_0.png {p}_1.png" for p in range(3)]
    lines += [f"0 {p}_0.png {(p + 1) % 3}_1.png" for p in range(3)]
    (tmp_path / "list.txt").write_text("\n".join(lines) + "\n")
    summary = verify(
        encode, str(tmp_path / "list.txt"), progress=False, face_size=SIZE
    )
    assert summary["raw"]["EER"] == 0.0
