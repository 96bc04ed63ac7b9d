"""Collapse shows."""

import pytest
import torch

from speechbrain_ssl.brains.collapse import CollapseStats


def summary_of(*batches):
    stats = CollapseStats()
    for batch in batches:
        stats.append(batch)
    return stats.summarize()


def test_points_everywhere_have_spread_one_and_full_rank():
    summary = summary_of(torch.randn(2, 5000, 16), torch.randn(5000, 16))
    assert summary["embedding_spread"] == pytest.approx(1.0, abs=0.02)
    assert summary["effective_rank"] == pytest.approx(16, abs=0.1)
    assert CollapseStats.warnings(summary) == []


def test_scale_does_not_matter():
    points = torch.randn(500, 8)
    scale = torch.rand(500, 1) + 0.1
    assert summary_of(points) == pytest.approx(
        summary_of(points * scale), rel=1e-4
    )


def test_one_point_for_all_is_called_a_collapse():
    points = torch.ones(500, 64) + 1e-3 * torch.randn(500, 64)
    summary = summary_of(points)
    assert summary["embedding_spread"] < 0.01
    assert "same way" in CollapseStats.warnings(summary)[0]


def test_a_line_is_called_a_collapse():
    points = torch.randn(500, 1) * torch.ones(64) + 1e-4 * torch.randn(500, 64)
    summary = summary_of(points)
    assert summary["effective_rank"] == pytest.approx(1.0, abs=0.01)
    assert "dimensions" in CollapseStats.warnings(summary)[-1]


def test_nothing_seen_gives_no_statistics():
    assert CollapseStats().summarize() == {}
