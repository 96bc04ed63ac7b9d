"""MHFA is its formula; frames beyond an utterance have no weight."""

import numpy as np
import pytest
import torch

from speechbrain_ssl.nnet.mhfa import (
    MHFA,
    StatisticsPooling,
    WeightedLayers,
)

LAYERS, WIDTH, FRAMES = 3, 5, 7


def mhfa(**settings):
    return MHFA(LAYERS, WIDTH, **{"emb_dim": 4, "heads": 2, **settings})


def moved(net):
    """Makes all weights differ from one another."""
    with torch.no_grad():
        for parameter in net.parameters():
            parameter.normal_()
    return net


def slowly(net, hidden):
    """The formula, number by number, of one utterance [layers, time, width]."""
    weights = {
        k: v.detach().numpy() for k, v in net.double().named_parameters()
    }

    def softmax(x):
        e = [np.exp(float(value)) for value in x]
        return [value / sum(e) for value in e]

    def stream(name):
        share = softmax(weights[f"{name}_layers.weight"])
        frames = []
        for t in range(hidden.shape[1]):
            mean = sum(a * hidden[n, t] for n, a in enumerate(share))
            frames.append(
                weights[f"{name}.weight"] @ mean + weights[f"{name}.bias"]
            )
        return frames

    keys, values = stream("key"), stream("value")
    heads = []
    for row, bias in zip(
        weights["attention.weight"], weights["attention.bias"]
    ):
        share = softmax([row @ key + bias for key in keys])
        heads.append(sum(a * value for a, value in zip(share, values)))
    pooled = np.concatenate(heads)
    return weights["output.weight"] @ pooled + weights["output.bias"]


def test_embeddings_are_those_of_the_formula():
    net = moved(mhfa(compression=6))
    hidden = torch.randn(LAYERS, 2, FRAMES, WIDTH)
    found = net(hidden)[:, 0]
    for number, embedding in enumerate(found):
        wanted = slowly(net, hidden[:, number].double().numpy())
        np.testing.assert_allclose(
            embedding.detach().numpy(), wanted, rtol=1e-4, atol=1e-4
        )


def test_sizes_are_those_of_the_public_code():
    net = MHFA(layers=13, width=768, emb_dim=256)
    assert sum(p.numel() for p in net.parameters()) == (
        26 + 2 * 98432 + 8256 + 2097408
    )
    assert net(torch.randn(13, 2, 4, 768)).shape == (2, 1, 256)


def test_layers_have_equal_weights_at_first():
    net = mhfa()
    for layers in (net.key_layers, net.value_layers):
        torch.testing.assert_close(
            layers.weight.softmax(0), torch.full((LAYERS,), 1 / LAYERS)
        )


def test_the_order_of_frames_does_not_matter():
    net, hidden = moved(mhfa()), torch.randn(LAYERS, 2, FRAMES, WIDTH)
    turned = hidden[:, :, torch.randperm(FRAMES)]
    torch.testing.assert_close(net(hidden), net(turned))


def test_frames_of_padding_have_no_weight():
    net, hidden = moved(mhfa()), torch.randn(LAYERS, 2, FRAMES, WIDTH)
    hidden[:, 1, 4:] = 0.0
    found = net(hidden)
    torch.testing.assert_close(found[:1], net(hidden[:, :1]))
    torch.testing.assert_close(found[1:], net(hidden[:, 1:, :4]))
    # frames of zeros only are no speech, but no NaN either
    assert torch.isfinite(net(torch.zeros(LAYERS, 2, FRAMES, WIDTH))).all()


def test_attention_is_as_exact_under_autocast():
    net, hidden = moved(mhfa()), torch.randn(LAYERS, 2, FRAMES, WIDTH)
    with torch.autocast("cpu", torch.bfloat16):
        low = net(hidden).float()
    exact = net(hidden)
    assert (low - exact).abs().max() < 0.1 * exact.abs().max()


def test_another_number_of_layers_is_refused():
    with pytest.raises(ValueError, match="Expected 3 hidden states.*found 2"):
        WeightedLayers(LAYERS)(torch.randn(2, 1, FRAMES, WIDTH))


def test_statistics_of_equal_weights_are_mean_and_deviation():
    net = StatisticsPooling(LAYERS, WIDTH, emb_dim=2 * WIDTH)
    with torch.no_grad():
        # equal logits of all frames, and an output that changes nothing
        net.pooling.conv.conv.weight.zero_()
        net.output.weight.copy_(torch.eye(2 * WIDTH))
        net.output.bias.zero_()
    hidden = torch.randn(LAYERS, 2, FRAMES, WIDTH)
    found = net(hidden)[:, 0]
    frames = hidden.mean(0)
    wanted = torch.cat([frames.mean(1), frames.std(1, correction=0)], dim=1)
    torch.testing.assert_close(found, wanted, atol=1e-4, rtol=1e-4)


def test_statistics_leave_out_frames_beyond_an_utterance():
    net = moved(StatisticsPooling(LAYERS, WIDTH, emb_dim=4)).eval()
    hidden = torch.randn(LAYERS, 2, 8, WIDTH)
    for frames in range(1, 8):
        hidden[:, 0, frames:] = 0.0
        found = net(hidden)
        torch.testing.assert_close(found[:1], net(hidden[:, :1, :frames]))
        torch.testing.assert_close(found[1:], net(hidden[:, 1:]))
        hidden = torch.randn(LAYERS, 2, 8, WIDTH)
