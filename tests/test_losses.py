"""The four losses: by hand, against formulas written over explicit pairs, and against the reference code's numbers."""

import math

import pytest
import torch
import torch.nn.functional as F

from fastreid_ice.losses import (
    agnostic_loss,
    cross_camera_loss,
    hard_instance_loss,
    intra_camera_loss,
    online_association_loss,
    soft_instance_loss,
)
from tests.conftest import load_numbers
from tests.reference_losses import (
    naive_agnostic,
    naive_cross_camera,
    naive_hard_instance,
    naive_intra_camera,
    naive_online_association,
    naive_soft_instance,
)

GOLDEN = ("losses_market_like", "losses_few_proxies", "losses_one_camera")


def on_circle(*degrees: float) -> torch.Tensor:
    """Unit vectors of the plane at these angles."""
    radians = torch.tensor(degrees) * math.pi / 180
    return torch.stack([radians.cos(), radians.sin()], dim=1)


def reference_losses(numbers: dict, query: torch.Tensor) -> dict[str, torch.Tensor]:
    """Our losses of a golden batch, with the reference's weights."""
    labels = numbers["pseudo_labels"][numbers["batch_rows"]]
    camids = numbers["camids"][numbers["batch_rows"]]
    memory = numbers["proxies"], numbers["proxy_labels"], numbers["proxy_camids"]
    weak = numbers["weak"]
    return {
        "loss_agnostic": agnostic_loss(query, labels, numbers["centroids"]),
        "loss_cross_camera": 0.5 * cross_camera_loss(query, labels, camids, *memory),
        "loss_hard_instance": hard_instance_loss(query, numbers["key"], labels, labels),
        "loss_soft_instance": 10 * soft_instance_loss(query, numbers["key"], weak, weak),
    }


@pytest.mark.parametrize("name", GOLDEN)
def test_golden_losses_and_gradient(name):
    numbers = load_numbers(name)
    query = numbers["query"].clone().requires_grad_()
    losses = reference_losses(numbers, query)
    for key, loss in losses.items():
        assert loss.item() == pytest.approx(numbers[key], abs=1e-5), key
    (gradient,) = torch.autograd.grad(sum(losses.values()), query)
    torch.testing.assert_close(gradient, numbers["grad_query"], atol=1e-6, rtol=0)


class TestAgnostic:
    def test_by_hand(self):
        # Logits (1, 0), so the probability of the own cluster is e / (e + 1).
        loss = agnostic_loss(on_circle(0), torch.tensor([0]), on_circle(0, 90), temperature=1.0, smoothing=0.0)
        assert loss.item() == pytest.approx(math.log(1 + math.exp(-1)))

    def test_naive(self):
        query, centroids = torch.randn(6, 5), torch.randn(4, 5)
        labels = torch.randint(4, (6,))
        expected = naive_agnostic(query, labels, centroids, 0.5, 0.1)
        assert agnostic_loss(query, labels, centroids).item() == pytest.approx(expected, rel=1e-5)

    def test_normalize_query_forgets_the_length(self):
        query, labels, centroids = torch.randn(3, 4), torch.tensor([0, 1, 0]), torch.randn(2, 4)
        loss = agnostic_loss(query, labels, centroids, normalize_query=True)
        torch.testing.assert_close(loss, agnostic_loss(3 * query, labels, centroids, normalize_query=True))
        torch.testing.assert_close(loss, agnostic_loss(F.normalize(query, dim=1), labels, centroids))

    def test_sizes(self):
        with pytest.raises(ValueError, match="do not fit"):
            agnostic_loss(torch.randn(3, 4), torch.tensor([0, 1]), torch.randn(2, 4))


class TestCrossCamera:
    def case(self, queries=8, clusters=5, cameras=3, dim=6):
        labels = torch.randint(clusters, (queries,))
        proxy_labels = torch.arange(clusters).repeat(cameras)[: clusters * cameras - 2]  # two clusters miss a camera
        proxy_camids = torch.arange(cameras).repeat_interleave(clusters)[: len(proxy_labels)]
        proxies = F.normalize(torch.randn(len(proxy_labels), dim), dim=1)
        camids = torch.randint(cameras, (queries,))
        return torch.randn(queries, dim), labels, camids, proxies, proxy_labels, proxy_camids

    def test_by_hand(self):
        # Proxies of cluster 0 at 0 and 60 degrees, of cluster 1 at 90; the query at 0: cosines 1, 1/2, 0.
        loss = cross_camera_loss(
            on_circle(0),
            torch.tensor([0]),
            torch.tensor([0]),
            on_circle(0, 60, 90),
            torch.tensor([0, 0, 1]),
            torch.tensor([0, 1, 0]),
            temperature=1.0,
            num_negatives=1,
            proxy_norm="proxy",
        )
        assert loss.item() == pytest.approx(math.log(math.e + math.sqrt(math.e) + 1) - 0.75)

    @pytest.mark.parametrize("proxy_norm", ["dimension", "proxy"])
    @pytest.mark.parametrize("num_negatives", [0, 2, 50])
    @pytest.mark.parametrize("pad", [True, False])
    def test_naive(self, proxy_norm, num_negatives, pad):
        case = self.case()
        expected = naive_cross_camera(*case, 0.07, num_negatives, proxy_norm, pad)
        loss = cross_camera_loss(*case, 0.07, num_negatives, proxy_norm, pad)
        assert loss.item() == pytest.approx(expected, rel=1e-4)

    @pytest.mark.parametrize("positives", ["all", "other_cameras"])
    @pytest.mark.parametrize("denominator", ["joint", "single"])
    @pytest.mark.parametrize("average", ["camera", "image"])
    def test_variants_naive(self, positives, denominator, average):
        case = self.case(cameras=2)  # some clusters are seen by one camera only
        switches = {"positives": positives, "denominator": denominator, "average": average}
        expected = naive_cross_camera(*case, 0.07, 4, "proxy", False, **switches)
        query = case[0].requires_grad_()
        loss = cross_camera_loss(query, *case[1:], 0.07, 4, "proxy", False, **switches)
        assert loss.item() == pytest.approx(expected, rel=1e-4)
        assert torch.autograd.grad(loss, query)[0].isfinite().all()

    def test_shares_of_a_batch_add_up(self):
        query, labels, camids, *proxies = self.case()
        whole = cross_camera_loss(query, labels, camids, *proxies)
        parts = [slice(0, 4), slice(4, 8)]
        shares = [cross_camera_loss(query[p], labels[p], camids[p], *proxies, batch_camids=camids) for p in parts]
        torch.testing.assert_close(sum(shares), whole)

    def test_label_without_proxy(self):
        query, labels, camids, *memory = self.case()
        with pytest.raises(ValueError, match=r"no proxy for the pseudo labels \[9\]"):
            cross_camera_loss(query, torch.full_like(labels, 9), camids, *memory)

    def test_unknown_norm_lists_the_choices(self):
        with pytest.raises(ValueError, match="dimension, proxy"):
            cross_camera_loss(*self.case(), proxy_norm="column")


def proxy_case(queries=8, clusters=6, cameras=4, dim=5, missing=2):
    """Queries and camera proxies; some clusters are not seen by the last camera, from which no image is then."""
    proxy_labels = torch.arange(clusters).repeat(cameras)[: clusters * cameras - missing]
    proxy_camids = torch.arange(cameras).repeat_interleave(clusters)[: len(proxy_labels)]
    proxies = F.normalize(torch.randn(len(proxy_labels), dim), dim=1)
    images = torch.randint(len(proxies), (queries,))
    return torch.randn(queries, dim), proxy_labels[images], proxy_camids[images], proxies, proxy_labels, proxy_camids


PROXY_LOSSES = [cross_camera_loss, intra_camera_loss, online_association_loss]


class TestIntraCamera:
    def test_by_hand(self):
        # The own camera's proxies at 0 (own cluster) and 90 degrees; one of the own cluster elsewhere does not count.
        proxies = on_circle(0, 90, 0)
        cameras = torch.tensor([3, 3, 5])
        loss = intra_camera_loss(
            on_circle(0), torch.tensor([0]), torch.tensor([3]), proxies, torch.tensor([0, 1, 0]), cameras, 1.0
        )
        assert loss.item() == pytest.approx(math.log(1 + math.exp(-1)))

    @pytest.mark.parametrize("average", ["camera", "image"])
    def test_naive(self, average):
        case = proxy_case()
        loss = intra_camera_loss(*case, 0.07, average)
        assert loss.item() == pytest.approx(naive_intra_camera(*case, 0.07, average), rel=1e-4)


class TestOnlineAssociation:
    def test_by_hand(self):
        # Image and own proxy at 0 degrees. Camera 0: 0 (own), 60; camera 1: 90, 120; camera 2: 180.
        # The best of the cameras are 0, 90 and 180; of these 0 and 90 are the two positives, 60 the hardest other.
        loss = online_association_loss(
            on_circle(0),
            torch.tensor([0]),
            torch.tensor([0]),
            on_circle(0, 60, 90, 120, 180),
            torch.tensor([0, 1, 2, 3, 4]),
            torch.tensor([0, 0, 1, 1, 2]),
            temperature=1.0,
            num_positives=2,
            num_negatives=1,
        )
        assert loss.item() == pytest.approx(math.log(math.e + math.sqrt(math.e) + 1) - 0.5, abs=1e-6)

    @pytest.mark.parametrize("cameras", [1, 2, 4])  # fewer than three, and more
    @pytest.mark.parametrize("negatives", [0, 4, 50])
    @pytest.mark.parametrize("balance", [0.15, 1.0])
    def test_naive(self, cameras, negatives, balance):
        case = proxy_case(cameras=cameras)
        for average in ("camera", "image"):
            loss = online_association_loss(*case, 0.07, 3, negatives, balance, average)
            expected = naive_online_association(*case, 0.07, 3, negatives, balance, average)
            assert loss.item() == pytest.approx(expected, rel=1e-4, abs=1e-5)

    def test_equal_proxies(self):
        """Of equal proxies of a camera only the first is its best, and the others may be negatives."""
        case = list(proxy_case(missing=0))
        case[3] = case[3][:1].expand_as(case[3])
        loss = online_association_loss(*case, 1.0)
        assert loss.item() == pytest.approx(len(case[2].unique()) * math.log(24), rel=1e-5)

    def test_the_order_of_the_proxies_does_not_matter(self):
        query, labels, camids, *memory = proxy_case()
        order = torch.randperm(len(memory[0]))
        shuffled = [part[order] for part in memory]
        loss = online_association_loss(query, labels, camids, *memory)
        torch.testing.assert_close(loss, online_association_loss(query, labels, camids, *shuffled))


@pytest.mark.parametrize("loss", PROXY_LOSSES)
class TestProxyLosses:
    def test_shares_of_a_batch_add_up(self, loss):
        query, labels, camids, *memory = proxy_case()
        shares = [
            loss(query[part], labels[part], camids[part], *memory, batch_camids=camids)
            for part in (slice(0, 3), slice(3, 8))
        ]
        torch.testing.assert_close(sum(shares), loss(query, labels, camids, *memory))

    @pytest.mark.parametrize("average", ["camera", "image"])
    def test_images_of_camera_minus_one_are_left_out(self, loss, average):
        query, labels, camids, *memory = proxy_case()
        expected = loss(query, labels, camids, *memory, average=average)
        more = torch.cat([query, torch.randn(2, 5)]).requires_grad_()
        labels, camids = torch.cat([labels, torch.tensor([77, 78])]), torch.cat([camids, torch.tensor([-1, -1])])
        found = loss(more, labels, camids, *memory, average=average)
        torch.testing.assert_close(found, expected)
        gradient = torch.autograd.grad(found, more)[0]
        assert gradient.isfinite().all() and gradient[:8].abs().sum() > 0 and gradient[8:].abs().max() == 0

    def test_what_cannot_be(self, loss):
        query, labels, camids, *memory = proxy_case()
        with pytest.raises(ValueError, match=rf"{loss.__name__}: no proxy for the pseudo labels \[9\]"):
            loss(query, torch.full_like(labels, 9), camids, *memory)
        with pytest.raises(ValueError, match=f"{loss.__name__}: query .* do not fit together"):
            loss(query, labels[:3], camids, *memory)
        with pytest.raises(ValueError, match="AVERAGE is 'cluster'; choose one of camera, image"):
            loss(query, labels, camids, *memory, average="cluster")


class TestHardInstance:
    def test_by_hand(self):
        # Own cluster at 0 and 60 degrees, another cluster at 90: hardest positive cos 60 = 1/2, negative cos 90 = 0.
        labels = torch.tensor([7, 7, 9])
        loss = hard_instance_loss(on_circle(0), on_circle(0, 60, 90), torch.tensor([7]), labels, temperature=1.0)
        assert loss.item() == pytest.approx(math.log(1 + math.exp(-0.5)))

    def test_naive(self):
        query, keys, labels = torch.randn(8, 5), torch.randn(8, 5), torch.arange(4).repeat_interleave(2)
        expected = naive_hard_instance(query, keys, labels, 0.1)
        assert hard_instance_loss(query, keys, labels, labels).item() == pytest.approx(expected, rel=1e-5)

    def test_no_other_cluster_contributes_nothing(self):
        query = torch.randn(4, 3, requires_grad=True)
        labels = torch.zeros(4, dtype=torch.int64)
        loss = hard_instance_loss(query, torch.randn(4, 3), labels, labels)
        assert loss.item() == 0
        assert torch.autograd.grad(loss, query)[0].abs().max() == 0

    def test_no_key_of_the_cluster(self):
        with pytest.raises(ValueError, match="no key"):
            hard_instance_loss(torch.randn(1, 3), torch.randn(2, 3), torch.tensor([5]), torch.tensor([1, 2]))


class TestSoftInstance:
    def test_by_hand(self):
        # The weak views are alike (target 1/2, 1/2); the query's cosines are 1 and 0.
        weak = on_circle(0, 0)
        loss = soft_instance_loss(on_circle(0), on_circle(0, 90), weak[:1], weak, temperature=1.0)
        p = math.e / (math.e + 1)
        assert loss.item() == pytest.approx(0.5 * math.log(0.5 / p) + 0.5 * math.log(0.5 / (1 - p)), abs=1e-6)

    def test_naive(self):
        query, keys, weak = torch.randn(3, 6, 5)
        expected = naive_soft_instance(query, keys, weak, 0.4)
        assert soft_instance_loss(query, keys, weak, weak).item() == pytest.approx(expected, rel=1e-4)

    def test_equal_views_cost_nothing(self):
        features = torch.randn(6, 5)
        assert soft_instance_loss(features, features, features, features).item() == pytest.approx(0, abs=1e-6)
