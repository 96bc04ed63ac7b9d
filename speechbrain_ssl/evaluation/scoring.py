"""Scores of trials from embeddings: cosine and its normalization.

Embeddings are of any length [utterances, emb_dim]; a trial is the row of its
enrol utterance and that of its test utterance [trials].
"""

from collections.abc import Sequence

import numpy as np
import torch

# rows of two gathered blocks stay in the processor's second-level cache
TRIALS_PER_CHUNK = 512
# cohort scores held at a time: 16 MB in float32
COHORT_SCORES_PER_CHUNK = 4_000_000
# what ``normalize`` can do
NORMS = ("z_norm", "t_norm", "s_norm", "as_norm")


def unit(embeddings: np.ndarray | torch.Tensor) -> torch.Tensor:
    """Scales each embedding to length 1, as float32 [utterances, emb_dim].

    An embedding that is zero, NaN or infinite is an error.

    Example
    -------
    >>> unit(torch.tensor([[3.0, 4.0]]))
    tensor([[0.6000, 0.8000]])
    """
    embeddings = torch.as_tensor(embeddings).detach().float()
    if embeddings.ndim != 2:
        raise ValueError(
            "Expected embeddings [utterances, emb_dim], found shape "
            f"{list(embeddings.shape)}."
        )
    lengths = torch.linalg.vector_norm(embeddings, dim=1, keepdim=True)
    wrong = ~torch.isfinite(lengths) | (lengths == 0)
    if wrong.any():
        row = int(wrong.flatten().int().argmax())
        raise ValueError(
            "Expected embeddings that are finite and not zero, found one of "
            f"length {float(lengths[row])} in row {row}; {int(wrong.sum())} "
            f"of {len(embeddings)} rows are wrong. Check the encoder and "
            "the audio of that utterance."
        )
    return embeddings / lengths


def model_of(rows: Sequence[torch.Tensor] | torch.Tensor) -> torch.Tensor:
    """Embedding of a speaker that several files enrol [emb_dim].

    It is the mean of the embeddings of length 1, times their mean length.

    Example
    -------
    >>> model_of(torch.tensor([[3.0, 0.0], [0.0, 1.0]]))
    tensor([1., 1.])
    """
    if len(rows) == 1:
        return rows[0]
    rows = torch.stack(list(rows))
    lengths = torch.linalg.vector_norm(rows, dim=1)
    return unit(rows).mean(0) * lengths.mean()


def cosine_scores(
    embeddings: np.ndarray | torch.Tensor,
    enrol_index: np.ndarray | torch.Tensor | Sequence[int],
    test_index: np.ndarray | torch.Tensor | Sequence[int],
) -> np.ndarray:
    """Cosine of the two embeddings of each trial, float32 [trials].

    Example
    -------
    >>> cosine_scores(torch.eye(2), [0, 0], [0, 1]).tolist()
    [1.0, 0.0]
    """
    return pair_products(unit(embeddings), enrol_index, test_index)


def pair_products(
    rows: torch.Tensor,
    enrol_index: np.ndarray | torch.Tensor | Sequence[int],
    test_index: np.ndarray | torch.Tensor | Sequence[int],
) -> np.ndarray:
    """Inner product of the two rows of each trial [trials]."""
    enrol = torch.as_tensor(enrol_index, device=rows.device)
    test = torch.as_tensor(test_index, device=rows.device)
    products = torch.empty(len(enrol), dtype=rows.dtype, device=rows.device)
    # one buffer for each side: fresh ones cost as much as the products
    sides = rows.new_empty(2, TRIALS_PER_CHUNK, rows.shape[1])
    for start in range(0, len(enrol), TRIALS_PER_CHUNK):
        part = slice(start, start + TRIALS_PER_CHUNK)
        left, right = sides[:, : len(enrol[part])]
        torch.index_select(rows, 0, enrol[part], out=left)
        torch.index_select(rows, 0, test[part], out=right)
        torch.sum(left.mul_(right), 1, out=products[part])
    return products.cpu().numpy()


def normalize(
    scores: np.ndarray | torch.Tensor,
    enrol_index: np.ndarray | torch.Tensor,
    test_index: np.ndarray | torch.Tensor,
    embeddings: np.ndarray | torch.Tensor,
    cohort: np.ndarray | torch.Tensor,
    norm: str = "as_norm",
    top_n: int = 300,
) -> np.ndarray:
    """Normalizes scores by the scores of a cohort of other speakers.

    The cohort scores of one side of a trial have a mean and a standard
    deviation. The normalized score is (score - mean) / deviation:

    * ``z_norm``: with the statistics of the enrol side (zero normalization);
    * ``t_norm``: with those of the test side (test normalization);
    * ``s_norm``: the mean of both (symmetric normalization);
    * ``as_norm``: as ``s_norm``, but each side uses only its ``top_n``
      highest cohort scores (adaptive symmetric normalization).

    P. Matejka et al., "Analysis of Score Normalization in Multilingual Speaker
    Recognition", Interspeech 2017. The cohort needs no labels; it must not
    contain utterances of the trials. ``scores`` are cosines; ``top_n`` is at
    least 2. Gives float32 scores in standard deviations [trials].

    Example
    -------
    >>> cohort = torch.tensor([[1.0, 1.0], [1.0, -1.0], [-1.0, 1.0]])
    >>> normalize([1.0], [0], [0], torch.eye(2), cohort, "z_norm").round(3)
    array([0.936], dtype=float32)
    """
    if norm not in NORMS:
        raise ValueError(
            f"Expected a norm of {', '.join(NORMS)}, found {norm!r}."
        )
    count = top_n if norm == "as_norm" else len(cohort)
    sides = {
        "z_norm": [np.asarray(enrol_index)],
        "t_norm": [np.asarray(test_index)],
    }.get(norm, [np.asarray(enrol_index), np.asarray(test_index)])
    used, place = np.unique(np.concatenate(sides), return_inverse=True)
    rows = torch.as_tensor(embeddings)[torch.from_numpy(used)]
    mean, deviation = cohort_statistics(rows, cohort, count)
    scores = np.asarray(scores, dtype=np.float32)
    views = [
        (scores - mean[side]) / deviation[side]
        for side in np.split(place, len(sides))
    ]
    return sum(views[1:], views[0]) / len(views)


def check_top_n(top_n: int, cohort_size: int) -> None:
    """Refuses a ``top_n`` below 2 or above the size of the cohort."""
    if top_n < 2:
        raise ValueError(
            f"AS-norm needs a top_n of at least 2 (typically 300), got {top_n}."
        )
    if top_n > cohort_size:
        raise ValueError(
            f"AS-norm needs {top_n} cohort utterances (top_n) but the cohort "
            f"has {cohort_size}. Lower top_n or enlarge the cohort."
        )


def cohort_statistics(
    embeddings: np.ndarray | torch.Tensor,
    cohort: np.ndarray | torch.Tensor,
    top_n: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Mean and deviation of the ``top_n`` highest cohort scores of each."""
    check_top_n(top_n, len(cohort))
    rows, cohort = unit(embeddings).cpu(), unit(cohort).cpu()
    if rows.shape[1] != cohort.shape[1]:
        raise ValueError(
            "Expected embeddings of trials and cohort from one encoder, "
            f"found {rows.shape[1]} and {cohort.shape[1]} dimensions."
        )
    size = min(len(rows), max(1, COHORT_SCORES_PER_CHUNK // len(cohort)))
    # one buffer: fresh ones of this size fragment the heap to gigabytes
    buffer = torch.empty(size, len(cohort))
    mean, deviation = torch.empty(2, len(rows))
    for start in range(0, len(rows), size):
        part = slice(start, start + size)
        scores = buffer[: len(rows[part])]
        torch.mm(rows[part], cohort.T, out=scores)
        # numpy's partition is several times faster here than torch.topk
        scores.numpy().partition(-top_n, axis=1)
        deviation[part], mean[part] = torch.std_mean(scores[:, -top_n:], dim=1)
    # equal cosines still differ by float32's rounding
    if (deviation < 1e-6).any():
        raise ValueError(
            f"The {top_n} highest cohort scores of an utterance are all "
            "equal, so the normalization would divide by zero. The cohort must hold "
            "different utterances."
        )
    return mean.numpy(), deviation.numpy()
