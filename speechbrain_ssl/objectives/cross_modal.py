"""Voice and face of a clip find each other among those of all clips.

With a loss within each modality beside it, this is our cross-modal form of
stage one for audio-visual DLG-LC (B. Han, Z. Chen and Y. Qian,
https://arxiv.org/abs/2304.05754), whose code is not public. The loss between
two modalities is that of CLIP: A. Radford et al., "Learning transferable visual
models from natural language supervision", ICML 2021
(https://arxiv.org/abs/2103.00020).
"""

from typing import Any

import torch
import torch.nn.functional as F

from speechbrain_ssl.checks import checked, number, schedule, whole
from speechbrain_ssl.nnet.branch import BranchOutput, check_views
from speechbrain_ssl.nnet.contrast import contrast
from speechbrain_ssl.nnet.precision import full_precision
from speechbrain_ssl.nnet.schedules import at

# spread below which all projections of a modality point the same way
LOW_SPREAD = 0.05


class CrossModal(torch.nn.Module):
    """Contrast of voices with faces, and another objective within each.

    The first views are those of the voice, the others those of the face, as
    ``ClipSampler`` and ``ClipBranch`` have them. A view must find the views of
    its clip in the other modality among those of all clips of all processes;
    the loss is the mean over both directions.

    Arguments
    ---------
    voices : int
        Number of views of the voice.
    temperature : float
        Temperature of the softmax between modalities.
    weight : float or callable
        Weight of the loss between modalities, or a schedule of it.
    voice, face : torch.nn.Module
        Objectives within the modalities; None: no loss within it.

    Example
    -------
    >>> views = torch.eye(4).expand(3, 4, 4)  # two of voices, one of faces
    >>> loss, stats = CrossModal(2)(BranchOutput(views, views), None, 0.0)
    >>> loss.shape, stats["accuracy"]
    (torch.Size([]), tensor(1.))
    """

    own: Any

    @checked(
        voices=whole(1), temperature=number(above=0), weight=schedule(number(0))
    )
    def __init__(
        self,
        voices: int = 2,
        temperature: float = 0.07,
        weight: Any = 1.0,
        voice: torch.nn.Module | None = None,
        face: torch.nn.Module | None = None,
    ):
        super().__init__()
        self.voices, self.temperature = voices, temperature
        self.weight = weight
        own = {"voice": voice, "face": face}
        self.own = torch.nn.ModuleDict({k: x for k, x in own.items() if x})

    @property
    def stats_help(self) -> dict[str, str]:
        """One line for each statistic, under the names of ``forward``."""
        found = {
            "accuracy": (
                "Share of the pairs of voice and face of a clip with a higher "
                "cosine than all of other clips."
            ),
            "positive_cosine": "Mean cosine of voices and faces of a clip.",
            "negative_cosine": (
                "Mean cosine of voices and faces of different clips; near the "
                "positive one if nothing is learned."
            ),
            "cross_loss": "Loss between voices and faces without its weight.",
        }
        for name in ("voice", "face"):
            found[f"{name}_spread"] = (
                f"Spread of the projections of {name}s: 1 if they point in "
                "all directions, 0 if all are equal (collapse)."
            )
        for name, objective in self.own.items():
            found[f"{name}_loss"] = f"Loss within the {name}s."
            for stat, text in getattr(objective, "stats_help", {}).items():
                found[f"{name}_{stat}"] = f"{name.capitalize()}s: {text}"
        return found

    def forward(
        self, student: BranchOutput, teacher: BranchOutput | None, epoch: float
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Loss of one batch.

        The statistics of the objectives within get ``voice_`` or ``face_`` as
        a prefix.
        """
        views = len(student.projection)
        if views <= self.voices:
            raise ValueError(
                f"CrossModal needs views of {self.voices} voices and of one "
                f"face or more, got {views} views: set voices to the number of "
                "global_crops of the voice"
            )
        check_views(self, student, utterances=2)
        unit = F.normalize(full_precision(student.projection), dim=-1)
        voice, face = unit[: self.voices], unit[self.voices :]
        sides = [self._side(voice, face), self._side(face, voice)]
        losses, found, cosines = zip(*sides)
        between = torch.stack(losses).mean()
        total = at(self.weight, epoch) * between
        with torch.no_grad():
            stats = {
                "accuracy": torch.stack(found).mean(),
                "positive_cosine": cosines[0].positive.mean(),
                "negative_cosine": cosines[0].mean_negative(),
                "cross_loss": between.detach(),
                "voice_spread": _spread(voice),
                "face_spread": _spread(face),
            }
        for name, objective in self.own.items():
            loss, said = objective(
                self._part(name, student), self._part(name, teacher), epoch
            )
            total = total + loss
            stats[f"{name}_loss"] = loss.detach()
            stats.update({f"{name}_{key}": x for key, x in said.items()})
        return total, stats

    def commit(
        self, student: BranchOutput, teacher: BranchOutput | None
    ) -> None:
        """Lets the objectives within keep what they keep of a batch."""
        for name, objective in self.own.items():
            if hasattr(objective, "commit"):
                objective.commit(
                    self._part(name, student), self._part(name, teacher)
                )

    def warnings(self, stats: dict[str, float]) -> list[str]:
        """A sentence for each modality that has collapsed, and those of the
        objectives within.
        """
        found = [
            f"Collapse: the projections of all {name}s point the same way "
            f"(spread {stats[f'{name}_spread']:.3f}, healthy above "
            f"{LOW_SPREAD})."
            for name in ("voice", "face")
            if stats[f"{name}_spread"] < LOW_SPREAD
        ]
        for name, objective in self.own.items():
            ask = getattr(objective, "warnings", lambda stats: [])
            start = f"{name}_"
            mine = {
                key.removeprefix(start): x
                for key, x in stats.items()
                if key.startswith(start)
            }
            found += [f"{name.capitalize()}s: {text}" for text in ask(mine)]
        return found

    def _side(self, anchors, others):
        """Loss of the anchors, which share of them is found, and cosines."""
        cosines = contrast(anchors, others)
        positive, negative = cosines
        spread = (negative / self.temperature).logsumexp(-1)[:, None]
        loss = F.softplus(spread - positive / self.temperature).mean()
        found = positive.detach() > negative.detach().amax(-1)[:, None]
        return loss, found.float().mean(), cosines

    def _part(self, name, views):
        """The views of one modality."""
        if views is None:
            return None
        chosen = slice(self.voices, None)
        if name == "voice":
            chosen = slice(self.voices)
        return views._replace(
            embedding=views.embedding[chosen],
            projection=views.projection[chosen],
            view_id=views.view_id and views.view_id[chosen],
        )


def _spread(points):
    """1 less the squared length of the mean of unit points [...]."""
    return 1 - points.flatten(0, 1).mean(0).square().sum()
