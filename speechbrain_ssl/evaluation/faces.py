"""Scores of faces, and of voices and faces together, for ``verify``."""

import functools
import logging
import os
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch

from speechbrain_ssl.dataio import audio, faces
from speechbrain_ssl.dataio.annotations import read_annotation, read_by_id
from speechbrain_ssl.evaluation import scoring
from speechbrain_ssl.evaluation.trials import Trials

logger = logging.getLogger(__name__)


def read_faces(csv_path: str | None) -> dict[str, str]:
    """Reads the faces of files of trial lists, by file.

    The CSV has the columns ``ID`` (a file, as the lists name it) and ``face``,
    from the folder of the CSV; None: no such file.
    """
    if csv_path is None:
        return {}
    folder = os.path.dirname(os.path.abspath(csv_path))
    rows = read_by_id(csv_path, faces.COLUMN)
    return {name: os.path.join(folder, face) for name, face, _ in rows if face}


def embed_face_cohort(
    encode: Callable,
    size: int,
    cohort: str,
    count: int,
    data_folder: str | None = None,
    device: str | torch.device = "cpu",
) -> torch.Tensor:
    """Embeds the faces of a cohort that can be read [faces, emb_dim].

    ``size`` is height and width of the images. ``cohort`` is a folder of audio
    with faces, or an annotation with a column ``face``; at most ``count`` of
    them are taken, evenly spread.
    """
    if os.path.isdir(cohort):
        images = sorted(faces.find_faces(audio.find(cohort)[0]).values())
    else:
        rows = read_annotation(cohort, data_folder, extra=(faces.COLUMN,))
        rows = rows.having(faces.COLUMN)
        images = [rows.row(n)[faces.COLUMN] for n in range(len(rows))]
    if not images:
        raise FileNotFoundError(f"The cohort {cohort} has no faces.")
    taken = min(count, len(images))
    images = [images[n * len(images) // taken] for n in range(taken)]
    found = faces.try_faces(encode, images, size, device)
    return found.rows[[n for n in range(taken) if n not in found.failed]]


class FaceScores:
    """Scores of faces, and their weighted mean with those of voices.

    A trial in which a side has no face, or none that can be read, has no score
    of faces (NaN), and its fused score is that of the voices.

    ``encode`` maps pixels [batch, 3 * size * size] and relative lengths to
    embeddings. ``table`` has faces by file, as the lists name it; others lie
    beside the audio. ``weight`` is the share of the faces in the fused score;
    ``cohorts`` are embeddings of voices and of faces for AS-norm (None: no
    AS-norm), of which ``top_n`` count.
    """

    def __init__(
        self,
        encode: Callable,
        size: int,
        table: Mapping[str, str],
        weight: float = 0.5,
        device: str | torch.device = "cpu",
        cohorts: tuple[torch.Tensor, torch.Tensor] | None = None,
        top_n: int = 300,
    ):
        self.encode, self.size, self.table = encode, size, table
        self.weight, self.device = weight, device
        self.cohorts, self.top_n = cohorts, top_n
        self.known: dict[str, torch.Tensor] = {}

    def scorers(self) -> dict[str, Callable]:
        """Scorers for ``verify``: faces, fused, and both after AS-norm."""
        kinds = ["face", "fused"]
        if self.cohorts is not None:
            kinds += ["face_as_norm", "fused_as_norm"]
        return {kind: functools.partial(self._score, kind) for kind in kinds}

    def _embed(self, names, parts):
        """Embeddings of names; NaN for those without a face [names, dim]."""
        images = [
            [self.table[name]]
            if name in self.table
            else [*map(faces.face_of, own)]
            for name, own in zip(names, parts)
        ]
        new = {image for own in images for image in own if image}
        new = sorted(new - self.known.keys())
        found = faces.try_faces(self.encode, new, self.size, self.device)
        for number, image in enumerate(new):
            if number in found.failed:
                logger.warning("%s", found.failed[number])
                continue
            self.known[image] = scoring.unit(found.rows[number][None])[0]
        if not self.known:
            raise ValueError(
                "No file of the list has a face. Put faces beside the audio, "
                "or name them in a CSV: faces."
            )
        blank = torch.full_like(next(iter(self.known.values())), torch.nan)
        rows = []
        for own in images:
            seen = [self.known[image] for image in own if image in self.known]
            rows.append(torch.stack(seen).mean(0) if seen else blank)
        return torch.stack(rows)

    def _score(
        self,
        kind: str,
        embeddings: torch.Tensor,
        parts: Sequence[tuple[str, ...]],
        trials: Trials,
    ) -> np.ndarray:
        """One kind of score [trials]."""
        rows = self._embed(trials.files, parts)
        seen = ~rows.isnan().any(1).numpy()
        both = seen[trials.enrol] & seen[trials.test]
        face = np.full(len(both), np.nan)
        cohorts = [None, None]
        if kind.endswith("as_norm") and self.cohorts is not None:
            cohorts = [*self.cohorts]
        chosen = trials.enrol[both], trials.test[both]
        face[both] = self._cosines(rows.nan_to_num(1.0), *chosen, cohorts[1])
        if kind.startswith("face"):
            return face
        sides = trials.enrol, trials.test
        voice = self._cosines(embeddings, *sides, cohorts[0])
        fused = (1 - self.weight) * voice + self.weight * face
        return np.where(both, fused, voice)

    def _cosines(self, rows, enrol, test, cohort):
        """Cosines of pairs of rows, with a cohort after AS-norm."""
        scores = np.asarray(scoring.cosine_scores(rows, enrol, test))
        if cohort is None:
            return scores
        top = min(self.top_n, len(cohort))
        return scoring.normalize(
            scores, enrol, test, rows, cohort, "as_norm", top
        )
