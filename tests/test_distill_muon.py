"""distill.muon: singular values near 1, the same vectors; a step that favours no direction; convolutions as matrices."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from actlet.errors import SpecError
from distill.muon import Muon, orthogonalize


@pytest.mark.parametrize("shape", [(40, 40), (24, 90), (90, 24)])
def test_singular_values_come_near_one_and_vectors_stay(shape: tuple[int, int]) -> None:
    """From a spread of a hundred to 0.6 .. 1.3; the singular vectors are those of the matrix."""
    torch.manual_seed(0)
    rank = min(shape)
    left, right = torch.linalg.qr(torch.randn(shape[0], rank)).Q, torch.linalg.qr(torch.randn(shape[1], rank)).Q
    matrix = left @ torch.diag(torch.logspace(-2, 0, rank)) @ right.T
    result = orthogonalize(torch.stack([matrix, 1e-4 * matrix]))
    inner = left.T @ result[0] @ right  # diagonal where the vectors are kept
    assert torch.allclose(inner, torch.diag(inner.diagonal()), atol=2e-3)
    assert inner.diagonal().min() > 0.6
    assert inner.diagonal().max() < 1.3
    assert torch.allclose(result[0], result[1], atol=1e-3), "the size of a gradient must not count"


def test_a_matrix_of_zeros_stays_zero() -> None:
    """A weight whose gradient is 0 everywhere must not become NaN."""
    assert torch.equal(orthogonalize(torch.zeros(1, 4, 9)), torch.zeros(1, 4, 9))


def test_a_step_moves_every_direction_alike() -> None:
    """A gradient a thousand times steeper one way than the other moves the weight about as far both ways."""
    weight = nn.Parameter(torch.zeros(2, 2))
    optimizer = Muon([weight], lr=0.1, weight_decay=0.0)
    weight.grad = torch.tensor([[1.0, 0.0], [0.0, 1e-2]])
    optimizer.step()
    moved = weight.detach().diagonal()
    assert (moved < 0).all()
    assert 0.5 < float(moved[1] / moved[0]) < 2


def test_it_learns_a_steep_valley_sooner_than_its_gradient_says() -> None:
    """Targets whose inputs differ tenfold in size: both are learned."""
    torch.manual_seed(0)
    sizes, truth = torch.logspace(0, -1, 8), torch.randn(8, 8)
    layer = nn.Linear(8, 8, bias=False)
    optimizer = Muon(layer.parameters(), lr=0.1, weight_decay=0.0)

    def loss() -> Tensor:
        x = torch.randn(64, 8) * sizes
        return nn.functional.mse_loss(layer(x), x @ truth.T)

    for step in range(300):
        optimizer.param_groups[0]["lr"] = 0.1 * (1 - step / 300)
        optimizer.zero_grad()
        loss().backward()
        optimizer.step()
    assert torch.allclose(layer.weight, truth, atol=0.25)


def test_a_convolution_is_a_matrix_of_its_outputs() -> None:
    """The same update as for the flattened weight, in any memory format; weights without a gradient stay."""
    torch.manual_seed(0)
    gradient = torch.randn(6, 5, 3, 3)
    flat, kept = nn.Parameter(torch.zeros(6, 45)), nn.Parameter(torch.ones(6, 45))
    convolution = nn.Parameter(torch.zeros(6, 5, 3, 3).to(memory_format=torch.channels_last))
    flat.grad, convolution.grad = gradient.reshape(6, 45), gradient.to(memory_format=torch.channels_last)
    Muon([flat, kept, convolution]).step()
    assert torch.allclose(convolution.detach().reshape(6, 45), flat.detach(), atol=1e-6)
    assert torch.equal(kept, torch.ones(6, 45))


def test_a_vector_is_refused() -> None:
    """A bias has no directions; the message says who takes it."""
    with pytest.raises(SpecError, match=r"shape \(3,\).*AdamW"):
        Muon([nn.Parameter(torch.zeros(3))])
