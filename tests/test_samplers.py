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
