"""What keeps points apart and their dimensions in use."""

import torch
import torch.nn.functional as F

from speechbrain_ssl import distributed
from speechbrain_ssl.checks import checked, number, one_of
from speechbrain_ssl.nnet.precision import full_precision

# keeps the root's gradient finite where a dimension is constant (VICReg)
VARIANCE_EPS = 1e-4


def variance_hinge(x: torch.Tensor) -> torch.Tensor:
    """Mean shortfall of the standard deviations of the dimensions from one.

    A. Bardes, J. Ponce and Y. LeCun, "VICReg: variance-invariance-covariance
    regularization", ICLR 2022 (https://arxiv.org/abs/2105.04906). Points are
    those of all processes [batch, dim]; the result is from 0 to 1.

    Example
    -------
    >>> round(variance_hinge(torch.ones(4, 2)).item(), 4)
    0.99
    """
    deviation = torch.sqrt(x.var(0) + VARIANCE_EPS)
    return F.relu(1.0 - deviation).mean()


def covariance(x: torch.Tensor) -> torch.Tensor:
    """Covariance of dimensions of points [batch, dim], over batch - 1."""
    x = x - x.mean(0)
    return x.T @ x / (len(x) - 1)


def squared_off_diagonal(matrix: torch.Tensor) -> torch.Tensor:
    """Sum of the squares beside the diagonal of a matrix.

    Example
    -------
    >>> squared_off_diagonal(torch.ones(3, 3)).item()
    6.0
    """
    # not the difference of two large sums, which would lose a small rest
    return matrix.square().fill_diagonal_(0.0).sum()


def koleo(x: torch.Tensor) -> torch.Tensor:
    """Kozachenko-Leonenko regularizer: spreads points over the sphere.

    A. Sablayrolles et al., "Spreading vectors for similarity search", ICLR 2019
    (https://arxiv.org/abs/1806.03198). Points [batch, dim] are at least two in
    all processes together. The result is the mean of -log(distance to the
    nearest other point of any process).

    Example
    -------
    >>> round(koleo(torch.eye(4)).item(), 4)
    -0.3466
    """
    mine = F.normalize(x, dim=-1)
    everyone = distributed.gather_with_gradient(mine)
    if len(everyone) < 2:
        raise ValueError(f"koleo needs two points or more, got {len(everyone)}")
    with torch.no_grad():
        cosine = mine @ everyone.T
        rows = torch.arange(len(mine), device=x.device)
        # -inf, as -1 would tie with an antipodal neighbor
        cosine[rows, distributed.rank() * len(mine) + rows] = -torch.inf
        nearest = cosine.argmax(dim=1)
    distance = torch.linalg.vector_norm(mine - everyone[nearest], dim=-1)
    return -(distance + 1e-8).log().mean()


def consistency(student: torch.Tensor, teacher: torch.Tensor) -> torch.Tensor:
    """One minus the cosine between what student and teacher embed.

    B. Han, Z. Chen and Y. Qian, "Self-supervised learning with
    cluster-aware-DINO for high-performance robust speaker verification", 2023
    (https://arxiv.org/abs/2304.05754). Embeddings are [pairs, batch, dim];
    those of the teacher are of other views and get no gradient. The result is
    from 0 to 2, the mean over pairs and utterances.

    Example
    -------
    >>> consistency(torch.eye(4), 3 * torch.eye(4)).item()
    0.0
    """
    student = full_precision(student)
    teacher = full_precision(teacher.detach())
    return (1 - F.cosine_similarity(student, teacher, dim=-1)).mean()


class _Distance:
    """A network that moves away from where it began."""

    def __init__(self, module, weight):
        self.module, self.weight = module, weight
        self._begin()

    def _begin(self):
        """Takes the weights that the network has now as its start."""
        self.moving = [p for p in self.module.parameters() if p.requires_grad]
        self.start = [p.detach().clone() for p in self.moving]

    def _changes(self):
        """Differences of all tensors that learn to their start."""
        # the network may have gone to a GPU
        pairs = zip(self.moving, self.start)
        self.start = [start.to(now.device) for now, start in pairs]
        pairs = zip(self.moving, self.start)
        return [full_precision(now) - start for now, start in pairs]


class DistanceToPretrained(_Distance):
    """Adds to a loss how far a network has moved from where it began.

    The distance is that of the public code of V. Miara et al., "Towards
    supervised performance on speaker verification with self-supervised
    learning by leveraging large-scale ASR models", Interspeech 2024
    (https://arxiv.org/abs/2406.02285): the sum of the (not squared) norms of
    the differences of all tensors that learn.

    The network begins where it is when this object is made: as the YAML loads
    it, also if a training is resumed or goes on from another one.

    Arguments
    ---------
    module : torch.nn.Module
        The network.
    weight : float
        Factor of the distance.
    self_normalized : bool
        Whether loss and distance are both divided by their own values, as in
        the public code. The gradient is then that of their logarithms, so
        that batches with a small loss count as much as others.

    Example
    -------
    >>> net = torch.nn.Linear(2, 2)
    >>> add_distance = DistanceToPretrained(net, weight=0.1)
    >>> with torch.no_grad():
    ...     _ = net.bias.add_(torch.tensor([3.0, 4.0]))
    >>> total, stats = add_distance(torch.tensor(1.0))
    >>> round(total.item(), 4), round(stats["distance"].item(), 4)
    (1.5, 5.0)
    """

    stats_help = {
        "distance": "Sum of the norms of the changes of all trained tensors."
    }

    @checked(weight=number(0), self_normalized=one_of(True, False))
    def __init__(
        self,
        module: torch.nn.Module,
        weight: float = 0.01,
        self_normalized: bool = False,
    ):
        super().__init__(module, weight)
        self.self_normalized = self_normalized

    def __call__(
        self, loss: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Adds the distance; a loss of 0 adds 0 to it and to the gradient.

        Also gives ``distance`` for the log.
        """
        norms = [torch.linalg.vector_norm(x) for x in self._changes()]
        distance = torch.stack(norms).sum() if norms else loss.new_zeros(())
        stats = {"distance": distance.detach()}
        if self.self_normalized:
            # of all processes: one of them may have nothing to learn
            size = distributed.mean(loss.detach())
            loss = loss / size.masked_fill(size == 0, 1.0)
            distance = distance / (distance.detach() + 1e-5)
        return loss + self.weight * distance, stats


class DistanceToStart(_Distance):
    """Adds to a loss the squared distance of a network to its start.

    This is L2-SP, against the forgetting of what a network has learned before:
    X. Li, Y. Grandvalet, F. Davoine, "Explicit inductive bias for transfer
    learning with convolutional networks", ICML 2018
    (https://arxiv.org/abs/1802.01483)::

        total = loss + weight / 2 * sum ||w - w_start||^2

    The start are the weights of ``init_from``, also if a training is resumed.

    Arguments
    ---------
    module : torch.nn.Module
        The network.
    weight : float
        Factor of the distance.

    Example
    -------
    >>> net = torch.nn.Linear(2, 2)
    >>> add_distance = DistanceToStart(net, weight=0.1)
    >>> add_distance.begin()
    >>> with torch.no_grad():
    ...     _ = net.bias.add_(torch.tensor([3.0, 4.0]))
    >>> total, stats = add_distance(torch.tensor(1.0))
    >>> round(total.item(), 4), round(stats["distance"].item(), 4)
    (2.25, 5.0)
    """

    stats_help = {
        "distance": "Euclidean distance of the trained weights to their start."
    }

    @checked(weight=number(0))
    def __init__(self, module: torch.nn.Module, weight: float = 0.01):
        super().__init__(module, weight)

    def begin(self) -> None:
        """Takes the weights that the network has now as its start."""
        self._begin()

    def __call__(
        self, loss: torch.Tensor
    ) -> tuple[torch.Tensor, dict[str, torch.Tensor]]:
        """Adds the distance, and gives it as ``distance`` for the log."""
        squares = [x.square().sum() for x in self._changes()]
        square = torch.stack(squares).sum() if squares else loss.new_zeros(())
        stats = {"distance": square.detach().sqrt()}
        return loss + self.weight / 2 * square, stats
