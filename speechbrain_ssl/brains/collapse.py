"""Statistics that show whether embeddings have collapsed."""

from typing import Any

import torch
import torch.nn.functional as F

from speechbrain_ssl import distributed
from speechbrain_ssl.evaluation.metrics import effective_rank

# below these a warning is due (of an isotropic cloud both would be 1)
LOW_SPREAD = 0.1
LOW_RANK = 0.05


class CollapseStats:
    """Gathers unit embeddings of an epoch and describes their cloud.

    It keeps sums only, on the device of the embeddings, and computes nothing
    that would make an accelerator wait before the end of the epoch.
    """

    stats_help = {
        "embedding_spread": (
            "Spread of the embeddings: 1 if they point in all directions, 0 if "
            "all are equal (collapse)."
        ),
        "effective_rank": (
            "Effective number of dimensions that the embeddings use; few are a "
            "sign of collapse."
        ),
        "rank_share": (
            "The effective rank as a share of the dimensions of the embeddings."
        ),
    }

    def __init__(self):
        self.count = 0
        self.total: Any = 0.0
        self.outer: Any = 0.0

    @torch.no_grad()
    def append(self, embedding: torch.Tensor) -> None:
        """Adds embeddings of any leading axes [..., emb_dim]."""
        unit = F.normalize(embedding.detach().float().flatten(0, -2), dim=-1)
        # covariances are small differences, which TF32 would round away
        unit = unit.double()
        self.count += len(unit)
        self.total = self.total + unit.sum(0)
        self.outer = self.outer + unit.T @ unit

    def summarize(self) -> dict[str, float]:
        """Describes all embeddings of all processes, see ``stats_help``.

        The spread is the mean standard deviation of the dimensions of unit
        embeddings, times the root of their number; for the rank see
        ``evaluation.metrics.effective_rank``.
        """
        if not self.count:
            return {}
        mean = distributed.mean(self.total / self.count)
        second = distributed.mean(self.outer / self.count)
        covariance = (second - torch.outer(mean, mean)).cpu()
        variance = covariance.diagonal().clamp(min=0.0)
        rank = effective_rank(covariance.numpy())
        spread = variance.sqrt().mean() * len(variance) ** 0.5
        return {
            "embedding_spread": spread.item(),
            "effective_rank": rank,
            "rank_share": rank / len(variance),
        }

    @staticmethod
    def warnings(summary: dict[str, float]) -> list[str]:
        """A sentence for each sign of collapse in a summary."""
        found = []
        if summary.get("embedding_spread", 1.0) < LOW_SPREAD:
            found.append(
                "Collapse: all embeddings point the same way (spread "
                f"{summary['embedding_spread']:.3f}, healthy above "
                f"{LOW_SPREAD})."
            )
        if summary.get("rank_share", 1.0) < LOW_RANK:
            found.append(
                "Collapse: embeddings fill only "
                f"{summary['effective_rank']:.1f} dimensions, "
                f"{100 * summary['rank_share']:.1f} % of them (healthy above "
                f"{100 * LOW_RANK:.0f} %)."
            )
        return found
