"""Batch normalisation in chunks: what DataParallel computes, one GPU per chunk."""

import copy

import pytest
import torch
from torch import nn

from fastreid_ice.modeling import ChunkedBatchNorm, set_bn_chunks


def network():
    layers = nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Flatten(), nn.LazyLinear(5))
    layers.append(nn.BatchNorm1d(5))
    layers(torch.zeros(2, 3, 6, 6))
    return layers


def test_equals_the_chunks_run_one_after_another():
    plain, x = network(), torch.randn(12, 3, 6, 6)
    chunked = copy.deepcopy(plain)
    assert set_bn_chunks(chunked, 3) == 2
    replicas = [plain, copy.deepcopy(plain), copy.deepcopy(plain)]
    expected = torch.cat([replica(part) for replica, part in zip(replicas, x.chunk(3))])
    torch.testing.assert_close(chunked(x), expected)
    for name, value in plain.state_dict().items():  # the first replica's statistics are the ones that stay
        torch.testing.assert_close(chunked.state_dict()[name], value)


def test_gradients():
    plain, x = network(), torch.randn(8, 3, 6, 6)
    chunked = copy.deepcopy(plain)
    set_bn_chunks(chunked, 2)
    torch.cat([plain(part) for part in x.chunk(2)]).square().sum().backward()
    chunked(x).square().sum().backward()
    for ours, theirs in zip(chunked.parameters(), plain.parameters()):
        torch.testing.assert_close(ours.grad, theirs.grad)


def test_evaluation_and_names_do_not_change():
    plain, x = network(), torch.randn(4, 3, 6, 6)
    chunked = copy.deepcopy(plain)
    set_bn_chunks(chunked, 2)
    assert list(chunked.state_dict()) == list(plain.state_dict())
    torch.testing.assert_close(chunked.eval()(x), plain.eval()(x))


def test_setting_it_again_replaces_it():
    chunked = network()
    set_bn_chunks(chunked, 4)
    kind = type(chunked[1])
    set_bn_chunks(chunked, 2)
    assert type(chunked[1]) is kind and isinstance(chunked[1], (ChunkedBatchNorm, nn.BatchNorm2d))
    assert chunked[1].chunks == 2


def test_errors():
    with pytest.raises(ValueError, match="at least 1"):
        set_bn_chunks(network(), 0)
    with pytest.raises(ValueError, match="syncBN"):
        set_bn_chunks(nn.SyncBatchNorm(3), 2)
    assert set_bn_chunks(nn.SyncBatchNorm(3), 1) == 1
