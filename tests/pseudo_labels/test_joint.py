"""Joint embeddings: cosines, missing faces, agreement of clusters."""

import numpy as np
import pytest

from speechbrain_ssl.pseudo_labels import joint
from speechbrain_ssl.pseudo_labels.extract import Embeddings, load

META = {"settings": {"encoder": "x", "utterances": "y"}, "made": {}}


@pytest.fixture
def modalities():
    rng = np.random.default_rng(0)
    voice = rng.standard_normal((5, 4)).astype(np.float32)
    face = rng.standard_normal((3, 6)).astype(np.float32)
    return (
        Embeddings(list("abcde"), voice, {"f": "silent"}, META),
        Embeddings(list("dba"), face, {}, META),
    )


def cosine(a, b):
    return a @ b / np.sqrt((a @ a) * (b @ b))


@pytest.mark.parametrize("weight", [0.0, 0.3, 1.0])
def test_cosine_is_the_weighted_mean_of_both(modalities, tmp_path, weight):
    voice, face = modalities
    found = joint.join(voice, face, str(tmp_path), weight)
    assert found.ids == voice.ids and found.failed == voice.failed
    matrix = np.array(found.matrix)
    assert np.allclose(np.linalg.norm(matrix, axis=1), 1)
    slow = (1 - weight) * cosine(voice.matrix[0], voice.matrix[3])
    slow += weight * cosine(face.matrix[2], face.matrix[0])
    assert matrix[0] @ matrix[3] == pytest.approx(slow, abs=1e-6)
    # without faces on both sides: the voice alone
    slow = cosine(voice.matrix[2], voice.matrix[4])
    assert matrix[2] @ matrix[4] == pytest.approx(slow, abs=1e-6)


def test_another_weight_makes_other_embeddings(modalities, tmp_path):
    hashes = {
        joint.join(*modalities, str(tmp_path), weight).meta["made"][
            "embeddings"
        ]
        for weight in (0.2, 0.4, 0.2)
    }
    assert len(hashes) == 2
    assert load(str(tmp_path)).meta["settings"]["face_weight"] == 0.2


def test_parts_are_those_that_were_joined(modalities, tmp_path):
    voice, face = modalities
    parts = joint.parts_of(joint.join(voice, face, str(tmp_path), 0.5))
    rows, points = parts["face"]
    assert rows.tolist() == [0, 1, 3]
    for row, point in zip([2, 1, 0], points):
        assert cosine(face.matrix[row], point) == pytest.approx(1)
    assert parts["voice"][0].tolist() == [0, 1, 2, 3, 4]
    assert joint.parts_of(voice) == {}


def test_embeddings_without_a_common_utterance_are_refused(
    modalities, tmp_path
):
    voice, face = modalities
    with pytest.raises(ValueError, match="both voice and face"):
        joint.join(voice, face._replace(ids=list("xyz")), str(tmp_path), 0.5)


def test_classes_agree_in_both_clusters():
    # clusters of a point: where it is on the first axis
    def cluster(points):
        return (points[:, 0] > 0.5).astype(int)

    voice = np.array([[1, 0], [1, 0], [0, 1], [0, 1], [1, 0], [0, 1.0]])
    face = np.array([[1, 0], [0, 1], [0, 1], [0, 1.0]])
    parts = {
        "voice": (np.arange(6), voice),
        "face": (np.array([0, 1, 2, 3]), face),
    }
    classes, clusters = joint.agree(parts, 6, cluster)
    assert clusters["face"].tolist() == [1, 0, 0, 0, -1, -1]
    # 0 and 1 share the voice only; 5 follows its voice, 4 one of two
    assert classes[0] != classes[1] and classes[2] == classes[3] == classes[5]
    assert classes[4] in (classes[0], classes[1]) and classes.min() == 0
