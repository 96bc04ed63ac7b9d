"""Cosines of views to their own utterances and to all others."""

import math

import torch
import torch.nn.functional as F

from speechbrain_ssl.nnet.contrast import contrast


def test_cosines_are_those_of_a_loop_over_views_and_utterances():
    generator = torch.Generator().manual_seed(0)
    anchors, others = (
        F.normalize(torch.randn(views, 4, 8, generator=generator), dim=-1)
        for views in (2, 3)
    )
    found = contrast(anchors, others)
    for a in range(2):
        for b in range(4):
            to_all = others @ anchors[a, b]  # [others, utterances]
            assert torch.allclose(found.positive[a, :, b], to_all[:, b])
            to_all[:, b] = -math.inf
            assert torch.allclose(found.negative[a, b], to_all.flatten())


def test_the_mean_negative_leaves_out_own_views():
    points = torch.eye(4)[None].clone()
    points[0, 1] = points[0, 0]  # two of twelve pairs have cosine 1
    found = contrast(points, points)
    assert torch.allclose(found.mean_negative(), torch.tensor(2 / 12))
    alone = torch.eye(4)[None, :1]
    assert contrast(alone, alone).mean_negative() == 0
