"""Heads: what stands between the speaker embedding and the loss."""

import torch
import torch.nn.functional as F


def mlp(sizes, activation=torch.nn.GELU, norm=torch.nn.BatchNorm1d):
    """Linear layers with normalisation and activation in between.

    Arguments
    ---------
    sizes : list of int
        Width of the input, of each hidden layer and of the output; a single
        width is no layer at all.
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
    if len(sizes) > 1:
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
        # temperatures down to 0.02 leave no room for half precision
        with torch.autocast(x.device.type, enabled=False):
            return F.linear(
                F.normalize(x.float(), dim=-1), F.normalize(self.weight, dim=-1)
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

    Example
    -------
    >>> head = PrototypeHead([192, 256, 512, 128], Prototypes(128, 64))
    >>> head(torch.randn(4, 192)).shape
    torch.Size([4, 64])
    >>> head = PrototypeHead([192, 256, 512, 128], Prototypes(128, 64), True)
    >>> head(torch.randn(4, 192)).shape
    torch.Size([4, 576])
    """

    def __init__(self, sizes, prototypes, wide=False):
        super().__init__()
        self.hidden = mlp(sizes[:-1]) if wide else torch.nn.Identity()
        self.projector = mlp(sizes[-2:] if wide else sizes)
        self.prototypes = prototypes
        self.wide = wide

    def forward(self, x):
        """Scores embeddings.

        Arguments
        ---------
        x : torch.Tensor
            Embeddings [batch, emb_dim].

        Returns
        -------
        torch.Tensor
            Cosines [batch, prototypes], after the last hidden layer if that
            is asked for.
        """
        hidden = self.hidden(x)
        cosine = self.prototypes(self.projector(hidden))
        return torch.cat([hidden, cosine], dim=-1) if self.wide else cosine
