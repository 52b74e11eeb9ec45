"""Centroids and camera proxies against loops and the reference code's numbers."""

import math

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

import pytest
import torch
import torch.nn.functional as F
from fastreid.config import get_cfg

from fastreid_ice.clustering import instance_labels
from fastreid_ice.config import add_ice_config
from fastreid_ice.modeling import (
    HardMeanMemory,
    MemoryBank,
    MomentumMemory,
    StepFeatures,
    build_losses,
    camera_proxies,
    cluster_centroids,
)
from tests.conftest import load_numbers
from tests.tensor_sizes import Sizes


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


def momentum_memory(update, momentum=0.2, features="keys", kind=MomentumMemory):
    cfg = get_cfg()
    add_ice_config(cfg)
    node = cfg.MODEL.ICE.MOMENTUM_MEMORY
    node.MOMENTUM, node.UPDATE, node.FEATURES = momentum, update, features
    return kind(cfg)


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


def clustered_images():
    """Features, labels and cameras of 20 images, and a batch of them: several of some clusters, none of others."""
    generator = torch.Generator().manual_seed(3)
    features = F.normalize(torch.randn(20, 6, generator=generator), dim=1)
    labels, camids = torch.arange(20) % 5 - 1, torch.arange(20) % 3
    batch = torch.tensor([0, 1, 5, 6, 9, 10, 13, 18]) + 1
    batch = batch[labels[batch] >= 0]
    images = 3 * F.normalize(torch.randn(len(batch), 6, generator=generator), dim=1)  # of any length
    return features, labels, camids, batch, images


def step_of(images, labels, camids, moved_by):
    """A step in which only the queries, or only the keys, are these images."""
    nothing = torch.full_like(images, float("nan"))
    query, keys = (images, nothing) if moved_by == "queries" else (nothing, images)
    return StepFeatures(query, nothing, labels, camids, keys, nothing, labels, camids)


@pytest.mark.parametrize("source", ["keys", "queries"])
@pytest.mark.parametrize("update", ["each", "mean", "hardest"])
def test_momentum_memory_by_loops(update, source):
    features, labels, camids, batch, keys = clustered_images()
    memory = momentum_memory(update, features=source)
    memory.rebuild(features, labels, camids)
    torch.testing.assert_close(memory.centroids, F.normalize(cluster_centroids(features, labels), dim=1))
    before, proxies = memory.centroids.clone(), memory.proxies.clone()
    memory.update(step_of(keys, labels[batch], camids[batch], source))
    unit = F.normalize(keys, dim=1)
    for cluster in range(4):
        images = [image for image, label in zip(unit, labels[batch]) if label == cluster]
        expected = moved(before[cluster], images, update) if images else before[cluster]
        torch.testing.assert_close(memory.centroids[cluster], expected)
    for row, (label, camera) in enumerate(zip(memory.proxy_labels, memory.proxy_camids)):
        images = [i for i, y, c in zip(unit, labels[batch], camids[batch]) if y == label and c == camera]
        expected = moved(proxies[row], images, update) if images else proxies[row]
        torch.testing.assert_close(memory.proxies[row], expected)


@pytest.mark.parametrize("update", ["each", "mean", "hardest"])
def test_outliers_as_instances(update):
    """They have centroids that move, and no proxies; nothing else notices them."""
    features, labels, camids, batch, keys = clustered_images()
    outliers = labels < 0
    targets = instance_labels(labels)
    memory, without = momentum_memory(update), momentum_memory(update)
    memory.rebuild(features, targets, torch.where(outliers, -1, camids))
    without.rebuild(features, labels, camids)
    assert len(memory.centroids) == 4 + int(outliers.sum())
    torch.testing.assert_close(memory.centroids[4:], features[outliers])
    assert torch.equal(memory.proxies, without.proxies) and torch.equal(memory.proxy_labels, without.proxy_labels)
    without.update(step_of(keys, labels[batch], camids[batch], "keys"))
    alone = outliers.nonzero()[1]  # one of them is in the batch, twice, first and last
    images = torch.cat([keys[:1].flip(1), keys, keys[1:2].flip(1)])
    seen = torch.cat([alone, batch, alone])
    moving = torch.where(outliers, -1, camids)[seen]
    expected = moved(features[alone[0]], [images[0] / images[0].norm(), images[-1] / images[-1].norm()], update)
    memory.update(step_of(images, targets[seen], moving, "keys"))
    torch.testing.assert_close(memory.centroids[:4], without.centroids)
    torch.testing.assert_close(memory.proxies, without.proxies)
    torch.testing.assert_close(memory.centroids[5], expected)
    torch.testing.assert_close(memory.centroids[4], features[outliers][0])
    proxies = memory.proxies.clone()
    memory.update(step_of(images[:1], targets[alone], moving[:1], "keys"))  # a batch of outliers alone
    assert torch.equal(memory.proxies, proxies)


def test_hard_mean_memory_by_loops():
    features, labels, camids, batch, keys = clustered_images()
    memory = momentum_memory("each", kind=HardMeanMemory)
    memory.rebuild(features, labels, camids)
    assert torch.equal(memory.hard_centroids, memory.centroids)
    memory.hard_centroids = memory.hard_centroids.flip(1)  # other rows, so that it shows which bank decides
    before = {"mean": memory.centroids.clone(), "hardest": memory.hard_centroids.clone()}
    proxies = memory.proxies.clone()
    memory.update(step_of(keys, labels[batch], camids[batch], "keys"))
    unit = F.normalize(keys, dim=1)
    for rows, update in ((memory.centroids, "mean"), (memory.hard_centroids, "hardest")):
        for cluster in range(4):
            images = [image for image, label in zip(unit, labels[batch]) if label == cluster]
            old = before[update][cluster]
            torch.testing.assert_close(rows[cluster], moved(old, images, update) if images else old)
    assert not torch.equal(memory.proxies, proxies)


def contrast(query, rows, labels, temperature):
    """Cross-entropy over the rows, pair by pair."""
    losses = []
    for image, label in zip(query, labels.tolist()):
        logits = [float(image @ row) / float(image.norm()) / temperature for row in rows]
        losses.append(math.log(sum(math.exp(logit) for logit in logits)) - logits[label])
    return sum(losses) / len(losses)


def test_hard_mean_loss():
    features, labels, camids, batch, query = clustered_images()
    memory = momentum_memory("each", kind=HardMeanMemory)
    memory.rebuild(features, labels, camids)
    memory.hard_centroids = F.normalize(torch.randn(4, 6), dim=1)
    cfg = get_cfg()
    add_ice_config(cfg)
    cfg.MODEL.LOSSES.NAME = ("HardMeanLoss",)
    cfg.MODEL.LOSSES.HARD_MEAN.SCALE_MEAN = 0.25
    (loss,) = build_losses(cfg).values()
    step = step_of(query, labels[batch], camids[batch], "queries")
    expected = 0.5 * contrast(query, memory.hard_centroids, labels[batch], 0.05)
    expected += 0.25 * contrast(query, memory.centroids, labels[batch], 0.05)
    assert loss(step, memory).item() == pytest.approx(expected, rel=1e-5)
    with pytest.raises(ValueError, match="HardMeanLoss needs MODEL.ICE.MEMORY HardMeanMemory, not MemoryBank"):
        loss(step, MemoryBank())


def test_cluster_contrast_is_the_agnostic_loss_with_a_momentum_memory():
    """Steps of Cluster-Contrast's loss and memory, written out (arXiv 2103.11568, eq. 1 and 2)."""
    features, labels, camids, batch, query = clustered_images()
    memory = momentum_memory("each", momentum=0.1, features="queries")
    memory.rebuild(features, labels, camids)
    cfg = get_cfg()
    add_ice_config(cfg)
    cfg.MODEL.LOSSES.NAME = ("AgnosticLoss",)
    node = cfg.MODEL.LOSSES.AGNOSTIC
    node.NORMALIZE_QUERY, node.TEMPERATURE, node.SMOOTHING = True, 0.05, 0.0
    (loss,) = build_losses(cfg).values()
    rows = [row / row.norm() for row in cluster_centroids(features, labels)]
    for number in range(3):
        images = query.roll(number, dims=1)
        step = step_of(images, labels[batch], camids[batch], "queries")
        assert loss(step, memory).item() == pytest.approx(contrast(images, rows, labels[batch], 0.05), rel=1e-5)
        memory.update(step)
        for image, label in zip(images, labels[batch].tolist()):
            rows[label] = moved(rows[label], [image / image.norm()], "each", 0.1)


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


def test_the_source_of_the_features_names_its_key():
    with pytest.raises(ValueError, match="MODEL.ICE.MOMENTUM_MEMORY.FEATURES is 'values'; choose one of keys, queries"):
        momentum_memory("each", features="values")


@pytest.mark.parametrize("outliers", [0, 5, 40])
def test_means_without_a_copy_of_the_features(outliers):
    """Bit for bit the means over the rows that are kept, and nothing as large as the features is made."""
    generator = torch.Generator().manual_seed(outliers)
    features = F.normalize(torch.randn(4000, 64, generator=generator), dim=1)
    labels = torch.randint(30, (4000,), generator=generator)
    labels[torch.randperm(4000, generator=generator)[: 50 * outliers]] = -1
    camids = torch.randint(4, (4000,), generator=generator)
    kept = labels >= 0
    with Sizes() as sizes:
        centroids, (proxies, proxy_labels, proxy_camids) = (
            cluster_centroids(features, labels),
            camera_proxies(features, labels, camids),
        )
    assert sizes.largest < features.nbytes // 4
    assert torch.equal(centroids, cluster_centroids(features[kept], labels[kept]))
    expected = camera_proxies(features[kept], labels[kept], camids[kept])
    for found, other in zip((proxies, proxy_labels, proxy_camids), expected):
        assert torch.equal(found, other)
    means = torch.zeros(30, 64).index_add_(0, labels[kept], features[kept]) / torch.bincount(labels[kept])[:, None]
    assert torch.equal(centroids, means)
