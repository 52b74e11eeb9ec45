"""Batch normalisation in chunks: what DataParallel computes, one GPU per chunk."""

import copy

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

import pytest
import torch
from fastreid.layers.batch_norm import IBN
from fastreid.modeling import build_model
from torch import nn

from benchmarks.operations import Operations
from fastreid_ice.modeling import ChunkedBatchNorm, set_bn_chunks
from fastreid_ice.modeling.bn_chunks import ChunkedPass, chunks_per_process, is_synchronized
from tests.conftest import ice_config


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


def test_synchronised_normalisation_is_one_chunk_by_default():
    """Trained by several processes, it is loaded by one."""
    depth = {"MODEL__BACKBONE__NAME": "build_resnet_backbone", "MODEL__BACKBONE__DEPTH": "18x"}
    cfg = ice_config(**depth, MODEL__BACKBONE__FEAT_DIM=512, MODEL__BACKBONE__NORM="syncBN", MODEL__ICE__BN_CHUNKS=0)
    model = build_model(cfg)
    assert is_synchronized(model)
    assert all(layer.chunks == 1 for layer in model.modules() if isinstance(layer, ChunkedBatchNorm))
    assert chunks_per_process(0, 1, True) == 1 and chunks_per_process(0, 1) == 4 and chunks_per_process(2, 1, True) == 2


class Everything(nn.Module):
    """2-D, IBN's half and 1-D normalisation, an in-place ReLU behind each as in the networks; layers used twice."""

    def __init__(self):
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8), nn.ReLU(inplace=True))
        self.second = nn.Sequential(nn.Conv2d(8, 8, 3, padding=1), IBN(8, "BN"), nn.ReLU(inplace=True))
        self.neck = nn.BatchNorm1d(8, momentum=0.3)

    def forward(self, images):
        x = self.first(images)
        x = self.second(self.second(x)).mean(dim=(2, 3))
        return self.neck(x)


def two_of(chunks, module=Everything):
    torch.manual_seed(0)
    naive = module().double()  # else the rounding of two images' variance hides what is wrong
    for parameter in naive.parameters():
        nn.init.normal_(parameter, std=0.5)
    at_once = copy.deepcopy(naive)
    set_bn_chunks(at_once, chunks)
    return naive, at_once


def naive_pass(encoder, images, chunks):
    """One chunk after another, the running statistics of the first."""
    outputs, state = [], None
    for part in images.chunk(chunks):
        outputs.append(encoder(part))
        state = state or {name: value.clone() for name, value in encoder.named_buffers()}
    for name, value in encoder.named_buffers():
        value.data.copy_(state[name])  # behind the back of autograd, which keeps the statistics
    return torch.cat(outputs)


def close(actual, expected, message=None):
    torch.testing.assert_close(actual, expected, atol=1e-10, rtol=1e-10, msg=message)


def images_of(count, seed=1):
    return torch.randn(count, 3, 7, 6, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@pytest.mark.parametrize("chunks", [1, 2, 4])
@pytest.mark.parametrize("count", [8, 16, 11])  # 11: no multiple
def test_a_pass_equals_one_chunk_after_another(chunks, count):
    naive, encoder = two_of(chunks)
    run = ChunkedPass(encoder)
    for seed in (1, 2):  # the second moves statistics that have moved before
        images = images_of(count, seed)
        ours, theirs = run(encoder, images), naive_pass(naive, images, chunks)
        close(ours, theirs)
        ours.mul(torch.arange(8.0)).square().sum().backward()
        theirs.mul(torch.arange(8.0)).square().sum().backward()
    for (name, value), expected in zip(encoder.named_parameters(), naive.parameters()):
        close(value.grad, expected.grad, name)
    for (name, value), expected in zip(encoder.named_buffers(), naive.buffers()):
        close(value, expected, name)
    assert encoder.neck.num_batches_tracked == 2 and encoder.second[1].BN.num_batches_tracked == 4


@pytest.mark.parametrize("chunks, calls", [(1, 1), (4, 1)])
def test_one_call_a_layer(chunks, calls):
    _, encoder = two_of(chunks)
    run = ChunkedPass(encoder)
    with Operations() as counted:
        run(encoder, images_of(8))
    normalizations = [name for name in counted.names.elements() if "batch_norm" in name]
    assert len(normalizations) == calls * (1 + 2 + 1 + 2)  # two layers by batch, one by image and batch, used twice


def test_inner_rows_stay_with_their_image():
    """An encoder that folds parts of an image into the batch, each image's one after another."""

    class Parts(nn.Module):
        def __init__(self):
            super().__init__()
            self.norm = nn.BatchNorm1d(6)

        def forward(self, images):
            return self.norm(images[:, 0].flatten(0, 1)).unflatten(0, (len(images), -1)).flatten(1)

    naive, encoder = two_of(2, Parts)
    run, images = ChunkedPass(encoder), images_of(4)
    close(run(encoder, images), naive_pass(naive, images, 2))
    close(encoder.norm.running_var, naive.norm.running_var)


def test_what_cannot_be_done_at_once_is_done_in_turn():
    class CumulativeAverage(Everything):
        def __init__(self):
            super().__init__()
            self.neck = nn.BatchNorm1d(8, momentum=None)  # the host would have to know the count

    naive, encoder = two_of(2, CumulativeAverage)
    images = images_of(8)
    close(ChunkedPass(encoder)(encoder, images), naive_pass(naive, images, 2))
    close(encoder.neck.running_mean, naive.neck.running_mean)


def test_channels_last_in_chunks():
    naive, encoder = two_of(2)
    encoder.to(memory_format=torch.channels_last)
    images = images_of(8)
    ours = ChunkedPass(encoder)(encoder, images.contiguous(memory_format=torch.channels_last))
    close(ours, naive_pass(naive, images, 2))


def test_layers_in_evaluation_mode_stay_as_they_are():
    naive, encoder = two_of(2)
    for module in (naive.first, encoder.first):
        module.eval()
    images = images_of(8)
    close(ChunkedPass(encoder)(encoder, images), naive_pass(naive, images, 2))
    assert encoder.first[1].num_batches_tracked == 0
    encoder.eval()
    naive.eval()
    close(ChunkedPass(encoder)(encoder, images), naive(images))


def test_an_error_leaves_the_layers_usable():
    _, encoder = two_of(2)

    def fail(images):
        raise RuntimeError("in between")

    with pytest.raises(RuntimeError, match="in between"):
        ChunkedPass(encoder)(fail, images_of(8))
    assert encoder.neck.wide is None and encoder(images_of(8)).isfinite().all()


def test_mixed_precision():
    """The input in bfloat16, statistics and parameters in float32."""
    naive = nn.BatchNorm1d(8).float()
    encoder = copy.deepcopy(naive)
    set_bn_chunks(encoder, 2)
    rows = torch.randn(8, 8, generator=torch.Generator().manual_seed(0)).bfloat16()
    ours, theirs = ChunkedPass(encoder)(encoder, rows), naive_pass(naive, rows, 2)
    assert ours.dtype == theirs.dtype == torch.bfloat16
    torch.testing.assert_close(ours, theirs, atol=1e-2, rtol=1e-2)
    assert encoder.running_mean.dtype == torch.float32
    torch.testing.assert_close(encoder.running_mean, naive.running_mean)
