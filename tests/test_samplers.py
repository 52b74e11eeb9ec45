"""What a batch holds."""

from collections import Counter

import numpy as np
import pytest
import torch

from fastreid_ice.data.samplers import IdentityCameraSampler, draw_instances


def drawn(cameras: list[int], count: int, seed: int = 0) -> list[int]:
    return draw_instances(np.random.default_rng(seed), np.arange(len(cameras)), np.array(cameras), count).tolist()


class TestDrawInstances:
    def test_one_image_of_every_camera_first(self):
        for seed in range(20):
            images = drawn([0, 0, 0, 1, 1, 2, 2, 3], 4, seed)
            assert sorted([0, 0, 0, 1, 1, 2, 2, 3][i] for i in images) == [0, 1, 2, 3]

    def test_more_cameras_than_instances(self):
        for seed in range(20):
            assert len(set(drawn([0, 1, 2, 3, 4, 5], 4, seed))) == 4

    def test_filled_up_without_repetition(self):
        for seed in range(20):
            assert sorted(drawn([0, 0, 1, 1], 4, seed)) == [0, 1, 2, 3]

    def test_too_few_others_are_repeated(self):
        # Two cameras give two images; one other image is left for two places.
        for seed in range(20):
            counts = Counter(drawn([0, 0, 1], 4, seed))
            assert sorted(counts.values()) == [1, 1, 2] and len(counts) == 3

    def test_nothing_left_repeats_the_selected(self):
        images = [image for seed in range(50) for image in drawn([0, 1], 4, seed)]
        assert set(images) == {0, 1}
        assert len(drawn([0], 4)) == 4


def sampler(labels, camids=None, **arguments):
    labels = torch.tensor(labels)
    camids = torch.zeros_like(labels) if camids is None else torch.tensor(camids)
    defaults = {"batch_size": 4, "num_instances": 2, "batches": 5, "seed": 3}
    return IdentityCameraSampler(labels, camids, **{**defaults, **arguments})


class TestOutliers:
    labels = [0, 0, 1, 1, 2, 2, *[-1] * 10]

    def slots(self, share, batches=400, **arguments):
        """The pairs of images that take the places of a cluster, pass after pass."""
        images = [image for image, _ in sampler(self.labels, batches=batches, outlier_share=share, **arguments)]
        return list(zip(images[::2], images[1::2]))

    def test_a_pass_shows_each_outlier_once(self):
        # 3 clusters and 5 pairs of outliers are 4 batches of two places each.
        for start in range(0, 80, 8):
            one_pass = self.slots(1.0)[start : start + 8]
            alone = [image for pair in one_pass for image in pair if self.labels[image] < 0]
            assert sorted(alone) == list(range(6, 16))
            assert sorted(self.labels[a] for a, _ in one_pass if self.labels[a] >= 0) == [0, 1, 2]

    def test_places_are_not_shared(self):
        for a, b in self.slots(1.0):
            assert self.labels[a] == self.labels[b] and a != b

    def test_a_row_that_is_filled_up_has_no_image_twice(self):
        for seed in range(50):  # five outliers in two rows of four: three are drawn once more
            labels = [0] * 4 + [1] * 4 + [-1] * 5
            drawn = sampler(labels, batch_size=8, num_instances=4, batches=2, seed=seed, outlier_share=1.0)
            images = [image for image, _ in drawn]
            rows = [row for row in zip(*[iter(images)] * 4) if labels[row[0]] < 0]
            assert len(rows) == 2 and all(len(set(row)) == 4 for row in rows)
            assert set().union(*rows) == set(range(8, 13))

    def test_a_share(self):
        # As many places as the clusters have: 3 and 3 in a pass; each outlier in 6 of 10 passes.
        slots = self.slots(0.5)
        assert sum(self.labels[a] < 0 for a, _ in slots) == len(slots) / 2
        counts = Counter(image for pair in slots for image in pair if self.labels[image] < 0)
        assert len(counts) == 10 and min(counts.values()) > 0.75 * max(counts.values())

    def test_what_lacks_is_drawn_again(self):
        labels = [0, 0, 1, 1, -1, -1, -1]
        images = [image for image, _ in sampler(labels, batches=50, outlier_share=1.0)]
        for start in range(0, 200, 8):
            counts = Counter(image for image in images[start : start + 8] if labels[image] < 0)
            assert sorted(counts.values()) == [1, 1, 2]
        alone = sampler([0, 0, -1], batches=5, outlier_share=1.0, num_instances=4, batch_size=8)
        assert Counter(image for image, _ in alone)[2] == 20

    def test_without_a_share_nothing_changes(self):
        without = [label for label in self.labels if label >= 0]
        assert list(sampler(self.labels)) == list(sampler(without))

    def test_too_few_even_so(self):
        with pytest.raises(ValueError, match="1 clusters, but a batch needs 2"):
            sampler([0, 0])
        sampler([0, 0, -1], outlier_share=0.5)


class TestIdentityCameraSampler:
    labels = [0, 0, 1, 1, 2, 2, -1, -1, 2]

    def test_batches_of_clusters(self):
        draws = list(sampler(self.labels))
        assert [draw for _, draw in draws] == list(range(20))
        for start in range(0, 20, 4):
            batch = [self.labels[image] for image, _ in draws[start : start + 4]]
            assert batch[0] == batch[1] != batch[2] == batch[3] and -1 not in batch

    def test_an_incomplete_batch_is_dropped(self):
        # Three clusters, two per batch: each pass gives one batch, so every pair of clusters comes up in 60 passes.
        draws = list(sampler(self.labels, batches=60))
        pairs = {(self.labels[draws[i][0]], self.labels[draws[i + 2][0]]) for i in range(0, 240, 4)}
        assert len(pairs) == 6

    def test_repeatable_and_seeded(self):
        assert list(sampler(self.labels)) == list(sampler(self.labels))
        assert list(sampler(self.labels)) != list(sampler(self.labels, seed=4))
        one = sampler(self.labels)
        assert list(one) == list(one)

    def test_processes_share_every_batch_in_contiguous_parts(self):
        whole = list(sampler(self.labels))
        parts = [list(sampler(self.labels, rank=rank, world_size=2)) for rank in range(2)]
        joined = [d for start in range(0, 10, 2) for part in parts for d in part[start : start + 2]]
        assert joined == whole and len(parts[0]) == len(sampler(self.labels, rank=0, world_size=2)) == 10

    def test_too_few_clusters(self):
        with pytest.raises(ValueError, match="3 clusters, but a batch needs 4"):
            sampler(self.labels, batch_size=8)
        with pytest.raises(ValueError, match="0 clusters"):
            sampler([-1, -1])

    def test_sizes_that_do_not_divide(self):
        with pytest.raises(ValueError, match="multiple of DATALOADER.NUM_INSTANCE"):
            sampler(self.labels, batch_size=5)
        with pytest.raises(ValueError, match="multiple of the 3 processes"):
            sampler(self.labels, world_size=3)
