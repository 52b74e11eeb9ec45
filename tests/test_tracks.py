"""Tracks as a constraint: the images of one are together, two that one camera sees at the same time are apart."""

from __future__ import annotations

import math

from fastreid_ice.compat.launching import leave_process_group

import numpy as np
import pytest
import torch
import torch.distributed as dist
import torch.multiprocessing as mp
import torch.nn.functional as F

from fastreid_ice.clustering import Clusterer, ClusteringConfig, Tracks, check_tracks
from fastreid_ice.clustering.tracks import Spans, conflicting_clusters, separate_tracks, track_rows, track_spans
from tests.clustering_features import blobs

BOTH = "must_and_cannot_link"


def spans(*entries) -> Spans:
    """(camera, first, last) of each row."""
    return Spans(*(np.array(column) for column in zip(*entries)))


def on_circle(*degrees) -> np.ndarray:
    angles = np.radians(degrees)
    return np.stack([np.cos(angles), np.sin(angles)], axis=1).astype(np.float32)


def random_tracks(seed: int, images: int = 300) -> tuple[torch.Tensor, Tracks]:
    """Features without structure, and tracks of 1 to 8 images with gaps between their frames; some images have none."""
    rng = np.random.default_rng(seed)
    ids, cameras, frames = [], [], []
    while len(ids) < images:
        size, start, camera = rng.integers(1, 9), rng.integers(0, 200), rng.integers(0, 3)
        track = -1 if rng.random() < 0.2 else max(ids, default=0) + 1
        ids += [track] * size
        cameras += [camera] * size
        frames += (start + np.sort(rng.integers(0, 30, size))).tolist()
    order = torch.from_numpy(rng.permutation(len(ids)))
    features = F.normalize(torch.from_numpy(rng.normal(size=(len(ids), 8))).float(), dim=1)
    return features, Tracks(*(torch.tensor(values)[order] for values in (ids, cameras, frames)))


def broken_pairs(labels: torch.Tensor, tracks: Tracks) -> int:
    """Pairs of tracks in one cluster that one camera sees at the same time, counted plainly."""
    seen = {}
    for image, track in enumerate(tracks.ids.tolist()):
        if track >= 0 and labels[image] >= 0:
            camera, frame = int(tracks.cameras[image]), int(tracks.frames[image])
            entry = seen.setdefault(track, [int(labels[image]), camera, frame, frame])
            entry[2], entry[3] = min(entry[2], frame), max(entry[3], frame)
    found = list(seen.values())
    return sum(a[:2] == b[:2] and a[2] <= b[3] and b[2] <= a[3] for i, a in enumerate(found) for b in found[:i])


class TestRows:
    def test_by_hand(self):
        # Track 7 is at 0 and 90 degrees, so its row is at 45.
        rows = track_rows(torch.tensor([7, -1, 7, -1]))
        mean = rows.mean(torch.from_numpy(on_circle(0, 30, 90, 200)))
        half = math.sqrt(0.5)
        torch.testing.assert_close(mean[0], torch.tensor([half, half]))
        assert torch.equal(mean[1:], torch.from_numpy(on_circle(30, 200)))  # images of no track, bit for bit

    def test_naive(self):
        features, tracks = random_tracks(0)
        rows = track_rows(tracks.ids)
        mean = rows.mean(features)
        for row in range(len(rows)):
            members = (rows.of_image == row).nonzero().flatten()
            assert int(members[0]) == int(rows.first_image[row])
            assert len(tracks.ids[members].unique()) == 1 and (len(members) == 1 or int(tracks.ids[members[0]]) >= 0)
            torch.testing.assert_close(mean[row], F.normalize(features[members].double().sum(0), dim=0).float())
        assert len(rows) == int((tracks.ids < 0).sum()) + len(tracks.ids[tracks.ids >= 0].unique())

    def test_opposite_images_make_a_row_similar_to_nothing(self):
        features = torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
        assert track_rows(torch.tensor([0, 0])).mean(features).tolist() == [[0.0, 0.0]]


class TestConflicts:
    def test_by_hand(self):
        # Rows 0 and 1 share frame 5 of camera 0; row 2 begins one frame later than row 1 ends; row 3 is elsewhere.
        seen = spans((0, 1, 5), (0, 5, 9), (0, 10, 12), (1, 1, 9))
        assert conflicting_clusters(np.array([0, 0, 0, 0]), seen).tolist() == [0]
        assert conflicting_clusters(np.array([0, 1, 0, 0]), seen).tolist() == []
        assert conflicting_clusters(np.array([-1, -1, -1, -1]), seen).tolist() == []

    def test_meeting_by_hand(self):
        # Rows 0 and 1 are seen together in frame 5 alone. Row 4 is of no track, and of no camera to meet in.
        seen = spans((0, 1, 5), (0, 5, 9), (0, 6, 7), (1, 5, 5), (-1, 5, 5))
        assert seen.meets(0).tolist() == [True, True, False, False, False]
        assert seen.meets(1).tolist() == [True, True, True, False, False]
        assert not seen.meets(4).any()

    def test_images_of_no_track_meet_nothing(self):
        assert conflicting_clusters(np.array([0, 0]), spans((-1, 3, 3), (-1, 3, 3))).tolist() == []

    @pytest.mark.parametrize("seed", range(5))
    def test_naive(self, seed):
        _, tracks = random_tracks(seed)
        rows = track_rows(tracks.ids)
        labels = np.random.default_rng(seed).integers(-1, 15, len(rows))
        expected = {
            int(label)
            for label in np.unique(labels[labels >= 0])
            if broken_pairs(torch.from_numpy(np.where(labels == label, label, -1))[rows.of_image], tracks)
        }
        assert 0 < len(expected) < 15
        assert set(conflicting_clusters(labels, track_spans(tracks, rows)).tolist()) == expected


class TestSeparation:
    def test_by_hand(self):
        # At 0 and 90 degrees two tracks that camera 0 sees together: each begins a part. 60 degrees of another camera
        # is nearer to 90. 20 degrees meets the track at 0 and must go to the other, though that is farther.
        features = on_circle(0, 90, 60, 20)
        seen = spans((0, 0, 10), (0, 5, 15), (1, 0, 3), (0, 0, 4))
        assert separate_tracks(features, np.array([0, 0, 0, 0]), seen).tolist() == [0, 1, 1, 1]

    def test_one_frame_together_is_a_moment(self):
        # Frame 5 shows both tracks of camera 0, so both begin a part, and 60 degrees joins that at 90.
        seen = spans((0, 0, 5), (0, 5, 9), (1, 0, 1))
        assert separate_tracks(on_circle(0, 90, 60), np.array([0, 0, 0]), seen).tolist() == [0, 1, 1]

    def test_a_track_that_meets_all_parts_begins_another(self):
        # Camera 0 is busiest with two tracks; a third meets one at its beginning and one at its end.
        features = on_circle(0, 10, 20)
        seen = spans((0, 0, 4), (0, 6, 9), (0, 3, 7))
        labels = separate_tracks(features, np.array([0, 0, 0]), seen)
        assert labels[2] not in labels[:2]

    def test_other_clusters_keep_their_labels(self):
        features = on_circle(0, 90, 0, 90)
        seen = spans((0, 0, 1), (0, 5, 6), (0, 0, 1), (0, 0, 1))
        assert separate_tracks(features, np.array([1, 1, 0, 0]), seen).tolist() == [1, 1, 0, 2]

    def test_outliers_stay_outliers(self):
        seen = spans((0, 0, 1), (0, 0, 1))
        assert separate_tracks(on_circle(0, 0), np.array([-1, -1]), seen).tolist() == [-1, -1]

    @pytest.mark.parametrize("seed", range(5))
    def test_as_documented(self, seed):
        features, tracks = random_tracks(seed, images=120)
        rows = track_rows(tracks.ids)
        seen, points = track_spans(tracks, rows), rows.mean(features).numpy()
        labels = np.random.default_rng(seed).integers(0, 3, len(rows))
        found = separate_tracks(points, labels, seen)
        following = 3
        for label in range(3):
            members = np.flatnonzero(labels == label)
            parts = _plainly(points[members], seen.subset(members))
            numbers = [label, *range(following, following + len(parts) - 1)]
            following += len(parts) - 1
            for part, number in zip(parts, numbers):
                assert sorted(members[part].tolist()) == np.flatnonzero(found == number).tolist()


def _plainly(points: np.ndarray, seen: Spans) -> list[list[int]]:
    """The documented procedure for one cluster, step by step. Each moment begins with a track's first frame."""
    together = [[bool(seen.meets(a)[b]) for b in range(len(points))] for a in range(len(points))]
    moments = sorted({(camera, first) for camera, first in zip(seen.cameras, seen.first) if camera >= 0})
    visible = [
        [r for r in range(len(points)) if seen.cameras[r] == c and seen.first[r] <= frame <= seen.last[r]]
        for c, frame in moments
    ]
    seeds = max(visible, key=len)  # the first of the longest
    parts = [[seed] for seed in seeds]
    others = [row for row in range(len(points)) if row not in seeds]
    for row in sorted(others, key=lambda r: (-max(float(points[r] @ points[s]) for s in seeds), r)):
        free = [part for part in parts if not any(together[row][member] for member in part)]
        if free:
            sums = [points[part].astype(np.float64).sum(axis=0) for part in free]
            max(zip(sums, free), key=lambda pair: pair[0] @ points[row] / np.linalg.norm(pair[0]))[1].append(row)
        else:
            parts.append([row])
    return parts


METHODS = [{"k1": 8, "k2": 2, "eps": 0.8, "min_samples": 2}, {"method": "kmeans", "num_clusters": 6}]


class TestClusterer:
    @pytest.mark.parametrize("options", METHODS, ids=["jaccard_dbscan", "kmeans"])
    @pytest.mark.parametrize("seed", range(3))
    def test_properties(self, options, seed):
        features, tracks = random_tracks(seed)
        linked = Clusterer(ClusteringConfig(tracks="must_link", **options))(features, tracks=tracks).labels
        result = Clusterer(ClusteringConfig(tracks=BOTH, **options))(features, tracks=tracks)
        for labels in (linked, result.labels):
            pairs = torch.stack([tracks.ids, labels])[:, tracks.ids >= 0].unique(dim=1)
            assert pairs.shape[1] == len(pairs[0].unique())  # a track has one label
        assert broken_pairs(linked, tracks) > 0 and broken_pairs(result.labels, tracks) == 0
        # Separation only splits: a new cluster lies in an old one, outliers are the same, numbers have no gaps.
        pairs = torch.stack([result.labels, linked]).unique(dim=1)
        assert pairs.shape[1] == len(pairs[0].unique())
        assert torch.equal(result.labels < 0, linked < 0)
        assert result.labels.unique().tolist() == list(range(int(result.labels.min()), result.num_clusters))
        assert {"tracks", "separation"} <= result.seconds.keys()

    def test_none_is_without_tracks(self):
        features, tracks = random_tracks(0)
        config = ClusteringConfig(k1=8, k2=2, eps=0.8)
        assert torch.equal(Clusterer(config)(features, tracks=tracks).labels, Clusterer(config)(features).labels)

    def test_min_samples_counts_tracks(self):
        # Two people of one track with six images each: with tracks each is a single row, an outlier.
        features, ids = blobs(2, 6), torch.tensor([0] * 6 + [1] * 6)
        config = dict(k1=4, k2=1, min_samples=2)
        assert Clusterer(ClusteringConfig(**config))(features).num_clusters == 2
        labels = Clusterer(ClusteringConfig(tracks="must_link", **config))(features, tracks=Tracks(ids)).labels
        assert labels.tolist() == [-1] * 12

    def test_tracks_join_images_that_features_do_not(self):
        # One track looks like two people: both people's other tracks meet in its row.
        features = blobs(2, 6)
        ids = torch.tensor([0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5])
        config = ClusteringConfig(tracks="must_link", k1=3, k2=1, min_samples=2, eps=0.7)
        labels = Clusterer(config)(features, tracks=Tracks(ids)).labels
        assert labels.tolist() == [0] * 6 + [1] * 6

    def test_the_upper_bound_respects_tracks(self):
        config = ClusteringConfig(method="ground_truth", tracks=BOTH)
        tracks = Tracks(torch.tensor([0, 0, 1]), torch.tensor([0, 0, 0]), torch.tensor([1, 2, 2]))
        labels = Clusterer(config)(blobs(1, 3), identities=[4, 4, 4], tracks=tracks).labels
        assert labels.tolist() == [0, 0, 1]

    def test_facts_of_rows_are_those_of_their_first_image(self, monkeypatch):
        from fastreid_ice.clustering import METHODS as TABLE
        from fastreid_ice.clustering.methods import Method

        seen = {}

        def look(features, images, config, costs):
            seen["facts"], seen["rows"] = images, len(features)
            return torch.arange(len(features))

        monkeypatch.setitem(TABLE, "look", Method(look))
        config = ClusteringConfig(method="look", tracks="must_link")
        tracks = Tracks(torch.tensor([9, 2, 9, 2]))
        Clusterer(config)(blobs(1, 4), [5, 6, 7, 6], ["a", "b", "c", "d"], [1, 2, 3, 2], tracks)
        assert seen["rows"] == 2
        assert (seen["facts"].camids.tolist(), seen["facts"].names) == ([5, 6], ("a", "b"))
        assert seen["facts"].identities.tolist() == [1, 2]


def _rank(rank, store, folder):
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    features, tracks = random_tracks(0)
    result = Clusterer(ClusteringConfig(tracks=BOTH, **METHODS[0]))(features, tracks=tracks)
    torch.save(result.labels, folder / f"{rank}.pt")
    dist.barrier()  # who ends closes its connections
    leave_process_group()


def test_two_processes_equal_one(tmp_path):
    mp.spawn(_rank, (tmp_path / "store", tmp_path), nprocs=2)
    features, tracks = random_tracks(0)
    alone = Clusterer(ClusteringConfig(tracks=BOTH, **METHODS[0]))(features, tracks=tracks).labels
    assert all(torch.equal(torch.load(tmp_path / f"{rank}.pt"), alone) for rank in range(2))


class TestMistakes:
    @pytest.mark.parametrize(
        "tracks, mode, part",
        [
            (None, "must_link", "DATASETS.FOLDER.TRACK_FROM"),
            (Tracks(torch.tensor([-1, -1])), "must_link", "have no tracks"),
            (Tracks(torch.tensor([0, 1])), BOTH, "no cameras (DATASETS.FOLDER.CAMERA_FROM)"),
            (Tracks(torch.tensor([0, 1]), torch.tensor([0, 0])), BOTH, "no frame numbers"),
        ],
    )
    def test_what_is_not_there(self, tracks, mode, part):
        with pytest.raises(ValueError) as error:
            check_tracks(mode, tracks)
        assert part in str(error.value) and "CLUSTERING.TRACKS" in str(error.value)
        with pytest.raises(ValueError):
            Clusterer(ClusteringConfig(tracks=mode))(blobs(1, 2), tracks=tracks)

    def test_unknown_mode(self):
        with pytest.raises(ValueError, match="CLUSTERING.TRACKS is 'must'; choose one of none, must_link"):
            ClusteringConfig(tracks="must")

    def test_a_track_of_two_cameras(self):
        with pytest.raises(ValueError, match="1 tracks have images of several cameras"):
            Tracks(torch.tensor([3, 3, -1]), torch.tensor([0, 1, 2]))

    def test_lengths(self):
        with pytest.raises(ValueError, match="2 track ids, but 1 frames"):
            Tracks(torch.tensor([3, 3]), torch.tensor([0, 0]), torch.tensor([0]))
        with pytest.raises(ValueError, match="3 features but 2 tracks"):
            Clusterer(ClusteringConfig(tracks="must_link"))(blobs(1, 3), tracks=Tracks(torch.tensor([0, 0])))
