"""Heads: layers between the speaker embedding and the loss."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F

from speechbrain_ssl.checks import (
    checked,
    each,
    number,
    one_of,
    optional,
    whole,
)
from speechbrain_ssl.nnet.precision import full_precision


@checked(sizes=each(whole(1)), init_std=optional(number(above=0)))
def mlp(
    sizes: Sequence[int],
    activation: type[torch.nn.Module] = torch.nn.GELU,
    norm: type[torch.nn.Module] = torch.nn.BatchNorm1d,
    init_std: float | None = None,
) -> torch.nn.Sequential:
    """Makes linear layers with normalization and activation in between.

    ``sizes`` are the widths of input, hidden layers and output; a single width
    gives no layer. ``norm`` may be None. With ``init_std`` weights are drawn
    from a truncated normal distribution of this deviation, and biases are zero,
    as in DINO's code; None: torch's values.

    Example
    -------
    >>> mlp([192, 2048, 128])(torch.randn(4, 192)).shape
    torch.Size([4, 128])
    """
    layers: list[torch.nn.Module] = []
    for width_in, width_out in zip(sizes[:-2], sizes[1:-1]):
        layers.append(torch.nn.Linear(width_in, width_out))
        if norm is not None:
            layers.append(norm(width_out))
        layers.append(activation())
    if len(sizes) > 1:
        layers.append(torch.nn.Linear(sizes[-2], sizes[-1]))
    if init_std is not None:
        for layer in layers:
            if isinstance(layer, torch.nn.Linear):
                torch.nn.init.trunc_normal_(layer.weight, std=init_std)
                torch.nn.init.zeros_(layer.bias)
    return torch.nn.Sequential(*layers)


# statistics of ``predicted_cosine``
PREDICTION_HELP = {
    "cosine": "Mean cosine of predictions and their targets.",
    "negative_cosine": (
        "Mean cosine of predictions and targets of other utterances; near 1 "
        "on collapse."
    ),
}


def predicted_cosine(
    predictor: torch.nn.Module,
    projection: torch.Tensor,
    target: torch.Tensor,
    s: torch.Tensor,
    t: torch.Tensor,
) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
    """Mean cosine of the predictions from views and the targets of others.

    ``predictor`` takes [rows, dim], ``projection`` and ``target``, which gets
    no gradient, are [views, batch, dim], and ``s, t`` are pairs of their views.
    Gives the mean over pairs and utterances, and the statistics of
    ``PREDICTION_HELP``.
    """
    batch = projection.shape[1]
    # all views together, as they go through the head
    predicted = predictor(full_precision(projection).flatten(0, 1))
    predicted = F.normalize(full_precision(predicted), dim=-1)
    predicted = predicted.view_as(projection)
    target = F.normalize(full_precision(target.detach()), dim=-1)
    cosine = (predicted[s] * target[t]).sum(-1).mean()
    with torch.no_grad():
        # over all pairs of utterances, minus those of an utterance and itself
        total = (predicted.mean(1)[s] * target.mean(1)[t]).sum(-1).mean()
        negative = (batch * total - cosine) / max(batch - 1, 1)
    return cosine, {"cosine": cosine.detach(), "negative_cosine": negative}


class Prototypes(torch.nn.Module):
    """Cosine similarity to learnable unit vectors.

    Equal to a weight-normalized linear layer whose gains are fixed to one.

    Arguments
    ---------
    dim : int
        Width of the input.
    count : int
        Number of prototypes.
    std : float
        Deviation of their first values. They are used at unit length, so that
        it says nothing of where they point, but a step turns short ones
        further. A linear layer of torch has (3 dim) ** -0.5.
    """

    @checked(dim=whole(1), count=whole(1), std=number(above=0))
    def __init__(self, dim: int, count: int, std: float = 0.02):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(count, dim))
        torch.nn.init.trunc_normal_(self.weight, std=std)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Cosines [..., count] of points [..., dim] with all prototypes."""
        # temperatures down to 0.02 leave no room for half precision
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(
                F.normalize(full_precision(x), dim=-1),
                F.normalize(self.weight, dim=-1),
            )


class PrototypeHead(torch.nn.Module):
    """A projector whose output is compared with prototypes: DINO's head.

    Arguments
    ---------
    sizes : list of int
        Width of the embeddings, of each hidden layer and of the prototypes.
    prototypes : Prototypes
        What comes last.
    wide : bool
        Whether the last hidden layer is linear and part of the output, as
        RDINO wants it.
    init_std : float
        Of the layers before the prototypes, see ``mlp``.

    Example
    -------
    >>> head = PrototypeHead([192, 256, 512, 128], Prototypes(128, 64))
    >>> head(torch.randn(4, 192)).shape
    torch.Size([4, 64])
    >>> head = PrototypeHead([192, 256, 512, 128], Prototypes(128, 64), True)
    >>> head(torch.randn(4, 192)).shape
    torch.Size([4, 576])
    """

    @checked(
        sizes=each(whole(1)),
        wide=one_of(True, False),
        init_std=optional(number(above=0)),
    )
    def __init__(
        self,
        sizes: Sequence[int],
        prototypes: torch.nn.Module,
        wide: bool = False,
        init_std: float | None = None,
    ):
        super().__init__()
        self.hidden = torch.nn.Identity()
        if wide:
            self.hidden = mlp(sizes[:-1], init_std=init_std)
        self.projector = mlp(sizes[-2:] if wide else sizes, init_std=init_std)
        self.prototypes = prototypes
        self.wide = wide

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        """Cosines of embeddings [batch, emb_dim] with all prototypes.

        If that is asked for, the last hidden layer comes first.
        """
        hidden = self.hidden(x)
        cosine = self.prototypes(self.projector(hidden))
        return torch.cat([hidden, cosine], dim=-1) if self.wide else cosine
