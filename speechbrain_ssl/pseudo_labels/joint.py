"""Embeddings of voices and faces as one matrix, to be clustered together."""

from collections.abc import Callable

import numpy as np

from speechbrain_ssl.clustering.points import read_points
from speechbrain_ssl.files import hash_of
from speechbrain_ssl.pseudo_labels.extract import Embeddings, save


def join(
    voice: Embeddings, face: Embeddings, folder: str, weight: float
) -> Embeddings:
    """Writes joint embeddings as a folder of embeddings.

    A row is the unit embedding of the voice times the root of ``1 - weight``,
    followed by that of the face times the root of ``weight``: it has length 1,
    and the cosine of two rows is the weighted mean of the cosines of voices and
    of faces. An utterance without a face has the voice alone, at full length.
    Gives embeddings of the utterances of ``voice``, with "voice_dim" below
    "made" of their meta.
    """
    places = {name: row for row, name in enumerate(face.ids)}
    rows = np.array([places.get(name, -1) for name in voice.ids])
    has_face = rows >= 0
    if not has_face.any():
        raise ValueError(
            "No utterance has embeddings of both voice and face. Extract them "
            "for the same training CSV."
        )
    voices = read_points(voice.matrix, slice(None), unit=True)
    dim = voices.shape[1]
    matrix = np.zeros((len(rows), dim + face.matrix.shape[1]), np.float32)
    share = np.where(has_face, weight, 0.0)[:, None]
    matrix[:, :dim] = np.sqrt(1 - share) * voices
    chosen = read_points(face.matrix, rows[has_face], unit=True)
    matrix[has_face, dim:] = np.sqrt(weight) * chosen
    encoders = [e.meta["settings"]["encoder"] for e in (voice, face)]
    settings = {
        **voice.meta["settings"],
        "encoder": hash_of("+".join(encoders).encode()),
        "face_weight": weight,
    }
    made = {
        **voice.meta["made"],
        "voice_dim": dim,
        "with_face": int(has_face.sum()),
    }
    return save(folder, voice.ids, matrix, voice.failed, settings, made)


def parts_of(
    embeddings: Embeddings,
) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    """Voices and faces of joint embeddings.

    Gives ``voice`` and ``face``: rows that have it, and their embeddings [rows,
    emb_dim]. Empty if the embeddings are of one modality.
    """
    dim = embeddings.meta["made"].get("voice_dim")
    if dim is None:
        return {}
    found = {}
    for name, part in (("voice", slice(None, dim)), ("face", slice(dim, None))):
        points = np.asarray(embeddings.matrix[:, part], np.float32)
        rows = np.flatnonzero(np.abs(points).sum(1) > 0)
        found[name] = rows, points[rows]
    return found


def agree(
    parts: dict[str, tuple[np.ndarray, np.ndarray]],
    count: int,
    cluster: Callable,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Classes of utterances on which clusters of voices and of faces agree.

    Utterances of one class share both clusters. One without a face goes to the
    class that is most frequent in the cluster of its voice. ``parts`` are from
    ``parts_of`` and have ``count`` utterances; ``cluster`` maps unit embeddings
    [rows, emb_dim] to clusters, -1 for none [rows]. Gives int64 classes, and
    the clusters of each modality, -1 for none [count].
    """
    clusters = {}
    for name, (rows, points) in parts.items():
        clusters[name] = np.full(count, -1, np.int64)
        clusters[name][rows] = cluster(
            read_points(points, slice(None), unit=True)
        )
    voice, face = clusters["voice"], clusters["face"].copy()
    has_face = np.zeros(count, bool)
    has_face[parts["face"][0]] = True
    for row in np.flatnonzero(~has_face & (voice >= 0)):
        others = face[(voice == voice[row]) & has_face]
        others = others[others >= 0]
        if len(others):
            face[row] = np.bincount(others).argmax()
        else:  # a cluster of voices without any face is a class too
            face[row] = clusters["face"].max() + 1
    both = (voice >= 0) & (face >= 0)
    classes = np.full(count, -1, np.int64)
    pairs = np.stack([voice[both], face[both]], axis=1)
    if len(pairs):
        numbers = np.unique(pairs, axis=0, return_inverse=True)[1]
        classes[both] = numbers.reshape(-1)
    return classes, clusters
