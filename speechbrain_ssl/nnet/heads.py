"""Heads: what stands between the speaker embedding and the loss."""

import torch
import torch.nn.functional as F


def mlp(sizes, activation=torch.nn.GELU, norm=torch.nn.BatchNorm1d):
    """Linear layers with normalisation and activation in between.

    Arguments
    ---------
    sizes : list of int
        Width of the input, of each hidden layer and of the output.
    activation : type
        Activation class.
    norm : type
        Normalisation class, or None.

    Returns
    -------
    torch.nn.Sequential
        The layers; the last one is linear.

    Example
    -------
    >>> mlp([192, 2048, 128])(torch.randn(4, 192)).shape
    torch.Size([4, 128])
    """
    layers = []
    for width_in, width_out in zip(sizes[:-2], sizes[1:-1]):
        layers.append(torch.nn.Linear(width_in, width_out))
        if norm is not None:
            layers.append(norm(width_out))
        layers.append(activation())
    layers.append(torch.nn.Linear(sizes[-2], sizes[-1]))
    return torch.nn.Sequential(*layers)


class Prototypes(torch.nn.Module):
    """Cosine similarity to learnable unit vectors.

    Equal to a weight-normalised linear layer whose gains are fixed to one.

    Arguments
    ---------
    dim : int
        Width of the input.
    count : int
        Number of prototypes.
    """

    def __init__(self, dim, count):
        super().__init__()
        self.weight = torch.nn.Parameter(torch.empty(count, dim))
        torch.nn.init.trunc_normal_(self.weight, std=0.02)

    def forward(self, x):
        """Scores points against all prototypes.

        Arguments
        ---------
        x : torch.Tensor
            Points [..., dim].

        Returns
        -------
        torch.Tensor
            Cosines [..., count].
        """
        return F.linear(
            F.normalize(x, dim=-1), F.normalize(self.weight, dim=-1)
        )


class WideHead(torch.nn.Module):
    """A head that also gives its wide layer, for RDINO.

    Arguments
    ---------
    wide : torch.nn.Module
        Embeddings [batch, emb_dim] to the layer [batch, width].
    projector : torch.nn.Module
        From there to the projections [batch, proj_dim].

    Example
    -------
    >>> wide = mlp([192, 256, 512])
    >>> head = WideHead(wide, torch.nn.Linear(512, 64))
    >>> head(torch.randn(4, 192)).shape
    torch.Size([4, 576])
    """

    def __init__(self, wide, projector):
        super().__init__()
        self.wide = wide
        self.projector = projector

    def forward(self, x):
        """Both layers.

        Arguments
        ---------
        x : torch.Tensor
            Embeddings [batch, emb_dim].

        Returns
        -------
        torch.Tensor
            [batch, width + proj_dim].
        """
        wide = self.wide(x)
        return torch.cat([wide, self.projector(wide)], dim=-1)
