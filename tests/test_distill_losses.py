"""distill.losses: labels over bins that know their neighbours."""

from __future__ import annotations

import pytest
import torch

from distill.losses import gaussian_labels, token_cross_entropy

BINARY = torch.tensor([True, False])


def test_labels_are_distributions_around_the_bin() -> None:
    """Rows sum to one and peak at the true bin; a binary dimension has all its weight there."""
    bins = torch.tensor([[0, 3], [255, 128]])
    labels = gaussian_labels(bins, BINARY, count=256, sigma=12.0)
    assert torch.allclose(labels.sum(-1), torch.ones(2, 2))
    assert torch.equal(labels.argmax(-1), bins)
    assert labels[0, 0, 0] == 1.0
    assert labels[1, 1, 128] < 0.04


def test_expectation_of_a_label_is_its_bin_away_from_the_edges() -> None:
    """Decoding by expectation gives the bin back, to a hundredth of a bin."""
    bins = torch.tensor([[0, 60], [0, 190]])
    labels = gaussian_labels(bins, BINARY, count=256, sigma=12.0)[:, 1]
    assert torch.allclose((labels * torch.arange(256)).sum(-1), torch.tensor([60.0, 190.0]), atol=1e-2)


def test_cross_entropy_is_smallest_at_the_target() -> None:
    """Gibbs' inequality: any other distribution costs more than the target itself."""
    torch.manual_seed(0)
    target = torch.softmax(torch.randn(5, 2, 16), -1)
    best = token_cross_entropy(target.log(), target)
    for _ in range(20):
        assert token_cross_entropy(target.log() + 0.1 * torch.randn(5, 2, 16), target) > best


@pytest.mark.parametrize("weight", [torch.tensor([1.0, 0.0, 0.0]), torch.tensor([2.0, 0.0, 0.0])])
def test_weight_zero_leaves_a_step_out(weight: torch.Tensor) -> None:
    """Only weighted actions count, whatever the scale of the weights."""
    torch.manual_seed(0)
    logits, target = torch.randn(3, 2, 8), torch.softmax(torch.randn(3, 2, 8), -1)
    assert torch.allclose(token_cross_entropy(logits, target, weight), token_cross_entropy(logits[:1], target[:1]))
