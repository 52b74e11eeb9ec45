"""Centroids and camera proxies against loops and the reference code's numbers."""

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

import pytest
import torch
import torch.nn.functional as F
from fastreid.config import get_cfg

from fastreid_ice.config import add_ice_config
from fastreid_ice.modeling import MemoryBank, MomentumMemory, StepFeatures, camera_proxies, cluster_centroids
from tests.conftest import load_numbers


@pytest.mark.parametrize("name", ["losses_market_like", "losses_few_proxies", "losses_one_camera"])
def test_golden(name):
    numbers = load_numbers(name)
    features, labels = numbers["features"], numbers["pseudo_labels"]
    torch.testing.assert_close(cluster_centroids(features, labels), numbers["centroids"])
    proxies, proxy_labels, proxy_camids = camera_proxies(features, labels, numbers["camids"])
    torch.testing.assert_close(proxies, numbers["proxies"])
    assert proxy_labels.tolist() == numbers["proxy_labels"].tolist()
    assert proxy_camids.tolist() == numbers["proxy_camids"].tolist()


def test_naive_with_outliers():
    features = F.normalize(torch.randn(12, 4), dim=1)
    labels = torch.tensor([0, 0, 1, -1, 2, 2, 1, 0, -1, 2, 1, 1])
    camids = torch.tensor([0, 3, 3, 0, 1, 1, 0, 0, 1, 3, 3, 0])
    proxies, proxy_labels, proxy_camids = camera_proxies(features, labels, camids)
    expected = [(c, y) for c in range(4) for y in range(3) if ((labels == y) & (camids == c)).any()]
    assert list(zip(proxy_camids.tolist(), proxy_labels.tolist())) == expected
    for proxy, (camera, label) in zip(proxies, expected):
        mean = features[(labels == label) & (camids == camera)].mean(dim=0)
        torch.testing.assert_close(proxy, mean / mean.norm())


def test_bank_is_not_saved():
    bank = MemoryBank()
    assert bank.is_empty
    bank.rebuild(torch.eye(3), torch.tensor([0, 1, 1]), torch.tensor([0, 0, 1]))
    assert bank.centroids.shape == (2, 3) and bank.proxies.shape == (3, 3) and not bank.is_empty
    assert not bank.state_dict()


def momentum_memory(update, momentum=0.2):
    cfg = get_cfg()
    add_ice_config(cfg)
    cfg.MODEL.ICE.MOMENTUM_MEMORY.MOMENTUM, cfg.MODEL.ICE.MOMENTUM_MEMORY.UPDATE = momentum, update
    return MomentumMemory(cfg)


def moved(old, images, update, momentum=0.2):
    """The row after the images, by the formula."""
    if update == "mean":
        images = [torch.stack(images).mean(dim=0)]
    if update == "hardest":
        images = [min(images, key=lambda image: float(image @ old))]
    for image in images:
        old = momentum * old + (1 - momentum) * image
        old = old / old.norm()
    return old


@pytest.mark.parametrize("update", ["each", "mean", "hardest"])
def test_momentum_memory_by_loops(update):
    generator = torch.Generator().manual_seed(3)
    features = F.normalize(torch.randn(20, 6, generator=generator), dim=1)
    labels, camids = torch.arange(20) % 5 - 1, torch.arange(20) % 3
    memory = momentum_memory(update)
    memory.rebuild(features, labels, camids)
    torch.testing.assert_close(memory.centroids, F.normalize(cluster_centroids(features, labels), dim=1))
    before, proxies = memory.centroids.clone(), memory.proxies.clone()
    batch = torch.tensor([0, 1, 5, 6, 9, 10, 13, 18]) + 1
    batch = batch[labels[batch] >= 0]  # several images of some clusters, none of others
    keys = 3 * F.normalize(torch.randn(len(batch), 6, generator=generator), dim=1)  # of any length
    step = StepFeatures(
        keys, keys, labels[batch], camids[batch], keys, keys, labels[batch], camids[batch]
    )  # fmt: skip
    memory.update(step)
    unit = F.normalize(keys, dim=1)
    for cluster in range(4):
        images = [image for image, label in zip(unit, labels[batch]) if label == cluster]
        expected = moved(before[cluster], images, update) if images else before[cluster]
        torch.testing.assert_close(memory.centroids[cluster], expected)
    for row, (label, camera) in enumerate(zip(memory.proxy_labels, memory.proxy_camids)):
        images = [i for i, y, c in zip(unit, labels[batch], camids[batch]) if y == label and c == camera]
        expected = moved(proxies[row], images, update) if images else proxies[row]
        torch.testing.assert_close(memory.proxies[row], expected)


@pytest.mark.parametrize(
    ("update", "momentum", "message"),
    [
        ("median", 0.1, "MODEL.ICE.MOMENTUM_MEMORY.UPDATE is 'median'; choose one of each, mean, hardest"),
        ("each", 1.0, r"MODEL.ICE.MOMENTUM_MEMORY.MOMENTUM is 1.0; it must be in \[0, 1\)"),
    ],
)
def test_momentum_memory_names_its_key(update, momentum, message):
    with pytest.raises(ValueError, match=message):
        momentum_memory(update, momentum)
