"""The discriminator learns, the encoder gets its reversed gradient."""

import pytest
import torch

from speechbrain_ssl.nnet.adversary import (
    AugmentationAdversary,
    _Reversal,
)


def gradients(weight, reverse=True):
    """Of the embeddings, and of the first layer of the discriminator."""
    torch.manual_seed(0)
    adversary = AugmentationAdversary(4, weight=weight, hidden=8)
    x = torch.randn(3, 6, 4, requires_grad=True)
    loss, _ = adversary(*x)
    loss.backward()
    return x.grad, adversary.discriminator[2][0].weight.grad


def test_the_reversed_gradient_has_the_other_sign_and_the_weight():
    x = torch.randn(3, requires_grad=True)
    (_Reversal.apply(x, 2.0) ** 2).sum().backward()
    assert torch.allclose(x.grad, -4 * x.detach())


def test_the_weight_changes_the_encoder_and_not_the_discriminator():
    (once, layer), (thrice, same_layer) = gradients(1.0), gradients(3.0)
    assert torch.allclose(thrice, 3 * once)
    assert torch.equal(layer, same_layer) and layer.any()


def test_a_discriminator_learns_what_embeddings_show():
    """Embeddings that are nothing but their augmentation."""
    torch.manual_seed(0)
    adversary = AugmentationAdversary(4, hidden=16)
    optimizer = torch.optim.Adam(adversary.parameters(), 0.01)
    for _ in range(200):
        first, second = torch.randn(2, 64, 4).sign()
        loss, accuracy = adversary(first, first, second)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert accuracy > 0.9


def test_an_encoder_that_follows_the_gradient_hides_the_augmentation():
    torch.manual_seed(0)
    adversary = AugmentationAdversary(4, hidden=16)
    encoder = torch.nn.Linear(4, 4)
    optimizer = torch.optim.Adam(
        [*adversary.parameters(), *encoder.parameters()], 0.01
    )
    found = []
    for _ in range(400):
        first, second = torch.randn(2, 64, 4).sign()
        loss, accuracy = adversary(*map(encoder, (first, first, second)))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        found.append(accuracy.item())
    assert sum(found[-50:]) / 50 < 0.8


def test_a_negative_weight_is_refused():
    with pytest.raises(ValueError, match="weight"):
        AugmentationAdversary(4, weight=-1.0)
