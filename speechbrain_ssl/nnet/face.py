"""A face encoder with the three parts of a Branch, and a branch for clips.

Views come as flat pixels, as waveforms do; ``Pixels`` gives them their shape
back. Therefore teachers, objectives, training and export are those of voices.
"""

import math

import torch

from speechbrain_ssl.checks import checked, one_of, whole
from speechbrain_ssl.nnet.branch import Branch, BranchOutput

# means and deviations of the images of ImageNet, which torchvision's networks
# are trained with
MEAN, DEVIATION = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
BLOCKS = {10: (1, 1, 1, 1), 18: (2, 2, 2, 2), 34: (3, 4, 6, 3)}


class Pixels(torch.nn.Module):
    """Flat pixels to square images: the "features" of a face.

    Arguments
    ---------
    size : int
        Height and width of the images that are embedded; crops of other sizes
        are square too.

    Example
    -------
    >>> Pixels(8)(torch.zeros(2, 3 * 8 * 8)).shape
    torch.Size([2, 3, 8, 8])
    """

    @checked(size=whole(4))
    def __init__(self, size: int):
        super().__init__()
        self.size = size

    @property
    def input_length(self) -> int:
        """Values of one image."""
        return 3 * self.size**2

    def forward(self, pixels: torch.Tensor) -> torch.Tensor:
        """Pixels [batch, 3 * side * side] to images [batch, 3, side, side]."""
        side = math.isqrt(pixels.shape[-1] // 3)
        if 3 * side * side != pixels.shape[-1]:
            raise ValueError(
                f"Expected square images of three colors, found "
                f"{pixels.shape[-1]} values: a face encoder does not take audio"
            )
        return pixels.unflatten(-1, (3, side, side))


class PixelNorm(torch.nn.Module):
    """Subtracts the mean color of ImageNet and divides by its deviation.

    Example
    -------
    >>> PixelNorm()(torch.zeros(1, 3, 8, 8))[0, :, 0, 0]
    tensor([-2.1179, -2.0357, -1.8044])
    """

    mean: torch.Tensor
    deviation: torch.Tensor

    def __init__(self):
        super().__init__()
        for name, color in (("mean", MEAN), ("deviation", DEVIATION)):
            # on the device once: a copy in each step would wait for it
            value = torch.tensor(color).view(3, 1, 1)
            self.register_buffer(name, value, persistent=False)

    def forward(
        self, images: torch.Tensor, lengths: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Images [batch, 3, height, width] from 0 to 1, normalized."""
        return (images - self.mean) / self.deviation


class FaceResNet(torch.nn.Module):
    """torchvision's ResNet with an embedding, and a BatchNorm after it.

    K. He et al., "Deep residual learning for image recognition", CVPR 2016
    (https://arxiv.org/abs/1512.03385).

    Arguments
    ---------
    emb_dim : int
        Width of the embeddings.
    depth : int
        18 or 34 layers; 10 has one block in each stage, for CPUs.

    Example
    -------
    >>> FaceResNet(emb_dim=16, depth=10)(torch.zeros(2, 3, 32, 32)).shape
    torch.Size([2, 1, 16])
    """

    @checked(emb_dim=whole(1), depth=one_of(*BLOCKS))
    def __init__(self, emb_dim: int = 512, depth: int = 34):
        super().__init__()
        from torchvision.models import resnet

        self.network = resnet.ResNet(
            resnet.BasicBlock, list(BLOCKS[depth]), num_classes=emb_dim
        )
        # as in ArcFace's networks (https://arxiv.org/abs/1801.07698): means of
        # ReLU outputs are positive, so that all embeddings would share one
        # direction
        self.norm = torch.nn.BatchNorm1d(emb_dim)

    def forward(
        self, images: torch.Tensor, lengths: torch.Tensor | None = None
    ) -> torch.Tensor:
        """Images [batch, 3, height, width] to embeddings [batch, 1, emb_dim]."""
        return self.norm(self.network(images))[:, None]


class ClipBranch(torch.nn.Module):
    """A branch for voices and one for faces, as one network.

    Arguments
    ---------
    voice : Branch
        Waveforms to embeddings and projections.
    face : Branch
        Flat pixels to embeddings and projections of the same widths.
    """

    def __init__(self, voice: Branch, face: Branch):
        super().__init__()
        self.voice, self.face = voice, face

    def forward(self, views: list[torch.Tensor]) -> BranchOutput:
        """Encodes views of clips, in their order.

        Those of the voice [batch, time] come first, then those of the face
        [batch, 3, height, width].
        """
        voice = self.voice([view for view in views if view.dim() == 2])
        face = self.face([view.flatten(1) for view in views if view.dim() > 2])
        parts = []
        for name in ("embedding", "projection"):
            both = [getattr(output, name) for output in (voice, face)]
            widths = [part.shape[-1] for part in both]
            if widths[0] != widths[1]:
                raise ValueError(
                    f"The {name}s of voices have {widths[0]} dimensions, those "
                    f"of faces {widths[1]}: choose the same for both"
                )
            parts.append(torch.cat(both))
        embedding, projection = parts
        return BranchOutput(embedding, projection)
