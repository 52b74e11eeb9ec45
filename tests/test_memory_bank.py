"""Centroids and camera proxies against loops and the reference code's numbers."""

import pytest
import torch
import torch.nn.functional as F

from fastreid_ice.modeling import MemoryBank, camera_proxies, cluster_centroids
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
