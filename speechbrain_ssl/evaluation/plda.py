"""PLDA: log-likelihood ratios of a Gaussian model of speakers and sessions.

The model is estimated by ``speechbrain.processing.PLDA_LDA``, from clusters in
place of speakers. Its ``fast_PLDA_scoring`` makes a matrix of all enrol times
all test utterances and searches lists of names; here a trial costs one inner
product.
"""

import numpy as np
import scipy.linalg
import torch
from speechbrain.processing import PLDA_LDA

from speechbrain_ssl.evaluation import scoring

# Steps of expectation and maximization.
ITERATIONS = 10


class PLDA:
    """Simplified PLDA on centered embeddings of length 1.

    Garcia-Romero and Espy-Wilson, "Analysis of i-vector Length Normalization
    in Speaker Recognition Systems", Interspeech 2011.

    Arguments
    ---------
    rank : int
        Dimensions in which speakers differ, at most emb_dim.
    """

    def __init__(self, rank: int = 100):
        if rank < 1:
            raise ValueError(f"PLDA needs a rank of at least 1, not {rank}.")
        self.rank = rank

    def fit(
        self, embeddings: np.ndarray | torch.Tensor, classes: np.ndarray
    ) -> "PLDA":
        """Estimates the model from embeddings of any length and int64 classes.

        Returns itself. There must be enough utterances and classes for the rank.
        """
        self.center = scoring.unit(embeddings).double().mean(0)
        rows = self._prepare(embeddings)
        count = len(np.unique(classes))
        if self.rank > rows.shape[1]:
            raise ValueError(
                f"The rank of PLDA is {self.rank}, but embeddings have "
                f"{rows.shape[1]} dimensions. Lower it."
            )
        if count < 2 or len(rows) <= rows.shape[1]:
            raise ValueError(
                f"PLDA needs two clusters and more than {rows.shape[1]} "
                f"utterances (emb_dim), found {count} and {len(rows)}. Use "
                "more pseudo-labels."
            )
        model = PLDA_LDA.PLDA(rank_f=self.rank, nb_iter=ITERATIONS)
        try:
            with np.errstate(invalid="ignore"):  # an error says so below
                model.plda(_Statistics(rows, classes))
            # axes in which both covariances are diagonal, sessions' being 1
            spread, axes = scipy.linalg.eigh(model.F @ model.F.T, model.Sigma)
        except ValueError as error:
            raise ValueError(
                f"PLDA cannot be estimated ({error}): do the embeddings lie "
                "in fewer dimensions than they have?"
            ) from error
        self.model = model
        self.spread = spread[-self.rank :].clip(0)
        self.axes = axes[:, -self.rank :]
        return self

    def __call__(
        self,
        embeddings: np.ndarray | torch.Tensor,
        enrol: np.ndarray,
        test: np.ndarray,
    ) -> np.ndarray:
        """Natural log-likelihood ratios of pairs of rows [trials]."""
        points = (self._prepare(embeddings) - self.model.mean) @ self.axes
        # of two Gaussians in each axis: the sides correlate, or they do not
        total, both = self.spread + 1, 2 * self.spread + 1
        own = 0.5 * (points**2) @ (1 / total - total / both)
        constant = (np.log(total) - 0.5 * np.log(both)).sum()
        scaled = torch.from_numpy(points * np.sqrt(self.spread / both))
        products = scoring.pair_products(scaled, enrol, test)
        return products + own[enrol] + own[test] + constant

    def _prepare(self, embeddings):
        """Centered rows of length 1, float64."""
        rows = scoring.unit(embeddings).double() - self.center
        return torch.nn.functional.normalize(rows).cpu().numpy()


class _Statistics(PLDA_LDA.StatObject_SB):
    """SpeechBrain's statistics; sums need one pass, not one per class."""

    def __init__(self, rows, classes):
        order = np.argsort(classes, kind="stable")
        nothing = np.array([None] * len(rows))
        super().__init__(
            modelset=np.asarray(classes)[order],
            segset=order,
            start=nothing,
            stop=nothing,
            stat0=np.ones((len(rows), 1)),
            stat1=rows[order],
        )

    def sum_stat_per_model(self):
        """Sums of each class, and its number of utterances."""
        names, starts, sizes = np.unique(
            self.modelset, return_index=True, return_counts=True
        )
        sums = PLDA_LDA.StatObject_SB(
            modelset=names,
            segset=names,
            stat0=sizes[:, None].astype(np.float64),
            stat1=np.add.reduceat(self.stat1, starts),
        )
        return sums, sizes.astype(np.float64)
