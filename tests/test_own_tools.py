"""Images of one's own from crops to search: the page's commands, what the tools write, and what they refuse."""

from __future__ import annotations

import csv
import importlib
import json
import re
import shlex
import shutil
from dataclasses import replace
from pathlib import Path

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

import numpy as np
import pytest
import torch
import yaml
from fastreid.data.data_utils import read_image
from PIL import Image
from sklearn.metrics import adjusted_rand_score, silhouette_score

from fastreid_ice.camera_normalization import camera_normalized
from fastreid_ice.cli import check_dataset, label_images, sweep_eps, train
from fastreid_ice.clustering import Clusterer, ClusteringConfig, Tracks
from fastreid_ice.clustering.centroids import centroid_distances
from fastreid_ice.clustering.eps_sweep import suggest, sweep
from fastreid_ice.clustering.quality import agreement
from fastreid_ice.clustering.within_class import within_class_normalized
from fastreid_ice.config_files import load_config
from fastreid_ice.data import labelled_folder
from fastreid_ice.data.folder import scan_training_images
from fastreid_ice.data.folder_report import check_folder
from fastreid_ice.data.folder_scan import scan_folder
from fastreid_ice.data.folder_summary import for_a_cpu
from fastreid_ice.data.labelled_folder import write_identity_folders, write_market_folder
from fastreid_ice.engine import run_features
from fastreid_ice.engine.clustering_config import clustering_config
from fastreid_ice.engine.run_features import extract_run, read_features
from tests import own_images, tiny  # noqa: F401  (registers the dataset and the backbone)
from tests.clustering_features import blobs
from tests.conftest import ROOT, SMALL, small_options

PAGE = ROOT / "docs" / "own_cameras.md"
COMMANDS = [
    line for block in re.findall(r"```shell\n(.*?)```", PAGE.read_text(), re.DOTALL) for line in block.splitlines()
]
# What shrinks the page's trainings to a second; PATH and the like stay as the page has them.
TINY = {key: value for key, value in SMALL.items() if not key.startswith("DATASETS.")}
TINY |= {"INPUT.SIZE_TRAIN": [64, 32], "INPUT.SIZE_TEST": [64, 32], "MODEL.BACKBONE.PRETRAIN": False}
TINY |= {"CLUSTERING.K1": 6, "CLUSTERING.K2": 2, "CLUSTERING.EPS": 0.7}


def run(command: str) -> None:
    """A line of the page, in this process."""
    python, tool, *argv = shlex.split(command)
    assert python == "python"
    name = {"train_net": "train"}.get(Path(tool).stem, Path(tool).stem)
    assert (ROOT / tool).is_file() and f"fastreid_ice.cli.{name}" in (ROOT / tool).read_text()
    small = [str(item) for item in small_options(TINY)] if name == "train" else []
    importlib.import_module(f"fastreid_ice.cli.{name}").main([*argv, *small])


@pytest.fixture(scope="module")
def world(tmp_path_factory, tiny_dataset):
    """A folder in which the page's commands find what they name, after all of them have run."""
    folder = tmp_path_factory.mktemp("own")
    facts = own_images.plain(tiny_dataset, folder / "crops")
    own_images.by_camera(tiny_dataset, folder / "by_camera")
    own_images.labelled(tiny_dataset, folder / "labelled")
    truth = own_images.tracks(tiny_dataset, folder / "tracks")
    (folder / "truth.json").write_text(json.dumps(truth))
    names = sorted(path.name for path in (folder / "crops").iterdir())
    own_images.table(
        folder / "crops.csv", [{"path": name, "camera": f"c{camera}"} for name, (_, camera) in zip(names, facts)]
    )
    for name in names:  # animals lie down
        with Image.open(folder / "crops" / name) as image:
            (folder / "animals").mkdir(exist_ok=True)
            image.rotate(90, expand=True).save(folder / "animals" / f"{Path(name).stem}.png")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        for command in COMMANDS:
            run(command)
    return folder


def rows(path: Path) -> list[dict]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


class TestPage:
    def test_every_tool_is_on_it(self):
        used = {shlex.split(command)[1] for command in COMMANDS}
        assert used == {
            f"tools/{name}.py"
            for name in ("check_dataset", "train_net", "sweep_eps", "label_images", "whiten", "search")
        }
        assert PAGE.read_text().count("```shell") >= 10

    def test_its_commands_write_what_it_says(self, world):
        for name in (
            "crops.yml",
            "logs/crops_check/dataset.png",
            "logs/crops/eps_sweep/eps_sweep.png",
            "found.png",
            "logs/by_camera_whitened/model_final.pth",
        ):
            assert (world / name).stat().st_size > 100, name
        assert {row["camera"] for row in rows(world / "logs/crops/clusters.csv")} == {"0"}
        assert {row["camera"] for row in rows(world / "logs/by_camera/clusters.csv")} == {"0", "1", "2"}
        assert "mAP" in json.loads((world / "logs/crops_scored/results.json").read_text())[-1]
        assert "mAP" not in json.loads((world / "logs/crops/results.json").read_text())[-1]

    def test_the_written_configs_fit_the_images(self, world):
        def config(name):
            return yaml.safe_load((world / f"{name}.yml").read_text())

        assert "MODEL" not in config("crops") and "CrossCameraLoss" in config("by_camera")["MODEL"]["LOSSES"]["NAME"]
        assert config("animals")["INPUT"]["SIZE_TRAIN"] == [64, 128]  # small, and wider than high
        assert Path(config("tracks")["_BASE_"]).name == "own_tracks.yml"
        assert config("tracks")["CLUSTERING"]["TRACKS"] == "must_and_cannot_link"

    def test_written_for_a_cpu(self, world, tmp_path):
        written = yaml.safe_load((world / "by_camera_cpu.yml").read_text())
        assert Path(written["_BASE_"]).name == "own_cpu.yml" and written["CLUSTERING"]["CAMERA_NORMALIZATION"]
        assert "CrossCameraLoss" in written["MODEL"]["LOSSES"]["NAME"] and written["CLUSTERING"]["EPS_END"] == 0.5
        made = world / "logs/by_camera_cpu/config.yaml"
        assert yaml.safe_load(made.read_text())["TEST"]["ENGINE"] == "folded"
        for name in ("crops", "tracks"):  # without cameras; as own_tracks.yml
            argv = [str(world / name), "--cpu", "--write-config", str(tmp_path / f"{name}.yml")]
            if name == "tracks":
                argv += ["--camera-from", "folder", "--track-from", "folder", "--pattern", "(?P<frame>[0-9]+)[^/0-9]*$"]
            check_dataset.main(argv)
        crops, tracks = (load_config(tmp_path / f"{name}.yml") for name in ("crops", "tracks"))
        assert not crops.CLUSTERING.CAMERA_NORMALIZATION and not crops.DATASETS.USE_CAMERAS
        assert (crops.CLUSTERING.EPS, crops.CLUSTERING.EPS_END) == (0.55, 0.5) and crops.MODEL.DEVICE == "cpu"
        assert tuple(crops.MODEL.LOSSES.NAME) == ("AgnosticLoss", "HardInstanceLoss")
        own_tracks = load_config(ROOT / "configs/ICE/own_tracks.yml").CLUSTERING
        for key in ("K1", "K2", "MIN_SAMPLES", "TRACKS"):
            assert tracks.CLUSTERING[key] == own_tracks[key]

    def test_half_the_size_on_a_cpu(self, tmp_path):
        for shade in range(3):
            Image.new("RGB", (128, 256), (shade, 0, 0)).save(tmp_path / f"{shade}.png")
        large = check_folder(scan_folder(tmp_path, verify=False))
        half = for_a_cpu(large).recommendation
        assert (large.recommendation.input_size, large.recommendation.padding) == ((256, 128), 10)
        assert (half.input_size, half.padding) == ((128, 64), 5)
        assert half.reasons["input_size"] == large.recommendation.reasons["input_size"] + " On a CPU half of it."
        assert for_a_cpu(replace(large, recommendation=half)).recommendation is half
        many = for_a_cpu(replace(large, recommendation=replace(half, k1=30))).recommendation
        assert many.k1 == 20 and many.reasons["k1"].startswith("20 is the value of")

    def test_tracks_are_respected(self, world):
        found = {
            row["path"].split("tracks/")[-1]: int(row["label"]) for row in rows(world / "logs/tracks/clusters.csv")
        }
        spans: dict = {}
        for name, label in found.items():
            track, frame = name.rsplit("/", 1)
            spans.setdefault(track, (set(), []))
            spans[track][0].add(label)
            spans[track][1].append(int(frame.split(".")[0]))
        assert all(len(labels) == 1 for labels, _ in spans.values())
        meeting = [
            (labels, others)
            for track, (labels, frames) in spans.items()
            for other, (others, times) in spans.items()
            if track < other and track[:4] == other[:4] and min(frames) <= max(times) and min(times) <= max(frames)
        ]
        assert len(meeting) > 5 and not any(labels == others != {-1} for labels, others in meeting)

    def test_labels(self, world):
        table = rows(world / "found" / "labels.csv")
        stored = read_features(world / "found" / "features.npz")
        features = stored.features
        assert set(stored.clustering) == {"k1", "k2", "tracks"}
        labels = torch.tensor([int(row["identity"]) for row in table])
        assert len(table) == len(features) == len(list((world / "crops").iterdir()))
        for row, feature, label in zip(table, features, labels.tolist()):
            centroids = torch.stack([features[labels == k].mean(0) for k in range(int(labels.max()) + 1)])
            distances = 1 - torch.nn.functional.cosine_similarity(feature, centroids, dim=1)
            if label < 0:
                assert row["distance"] == row["margin"] == ""
                assert int(row["next"]) == int(distances.argmin())
            else:
                others = distances.clone()
                others[label] = float("inf")
                assert float(row["distance"]) == pytest.approx(float(distances[label]), abs=2e-5)
                assert float(row["margin"]) == pytest.approx(float(others.min() - distances[label]), abs=4e-5)
        links = {path.resolve() for path in (world / "found/identities").glob("*/*")}
        assert links == {Path(row["path"]).resolve() for row in table}

    def test_stock_fastreid_reads_the_labelled_folder(self, world):
        from fastreid.data.datasets.market1501 import Market1501

        dataset = Market1501(root=str(world / "found_by_camera"))
        table = rows(world / "found_by_camera" / "labels.csv")
        read = {}
        for part in (dataset.train, dataset.query, dataset.gallery):
            for path, identity, camera in part:
                number = int(Path(path).name.split("_")[2])
                read[number] = (int(str(identity).split("_")[-1]), int(str(camera).split("_")[-1]))
        kept = {n: (int(row["identity"]) + 1, int(row["camera"][3:]) - 1) for n, row in enumerate(table)}
        assert read == {n: facts for n, facts in kept.items() if facts[0] > 0}
        tested = {identity for _, identity, _ in dataset.query}
        assert tested and not tested & {int(identity.split("_")[-1]) for _, identity, _ in dataset.train}
        assert len({item[1:] for item in dataset.query}) == len(dataset.query)  # one for each identity and camera

    def test_an_eps_behind_the_run_is_the_one_that_counts(self, world, monkeypatch):
        """Though the run's fell to CLUSTERING.EPS_END."""
        monkeypatch.chdir(world)
        found = extract_run("logs/by_camera_cpu", ["CLUSTERING.EPS", "0.3"])
        assert clustering_config(found.cfg, seed=0).eps == 0.3
        found = extract_run("logs/by_camera_cpu", ["CLUSTERING.EPS", "0.3", "CLUSTERING.EPS_END", "0.2"])
        assert clustering_config(found.cfg, seed=0).eps == 0.2

    def test_a_sweep_is_of_the_features_that_the_run_clusters_last(self, world, monkeypatch, tmp_path):
        """Camera-normalised, and whitened by the clusters of the round before."""
        monkeypatch.chdir(world)
        options = ["CLUSTERING.WCCN_ROUNDS", "1", "CLUSTERING.CAMERA_NORMALIZATION", "True", "CLUSTERING.EPS", "0.7"]
        found = extract_run("logs/by_camera_cpu", options)
        config = clustering_config(found.cfg, seed=0)
        assert config.camera_normalization and config.wccn_rounds == 1
        features = camera_normalized(found.features, found.images.camids)
        first = Clusterer(replace(config, camera_normalization=False, wccn_rounds=0))(features).labels
        assert int(first.max()) >= 0
        sweep_eps.main(["logs/by_camera_cpu", "--eps", "0.7", "--output", str(tmp_path), "--opts", *options])
        expected = within_class_normalized(features, first, config.wccn_shrinkage)
        torch.testing.assert_close(read_features(tmp_path / "features.npz").features, expected)

    def test_a_sweep_follows_tracks_or_rounds(self, world, monkeypatch, tmp_path, capsys):
        monkeypatch.chdir(world)
        with pytest.raises(SystemExit):
            sweep_eps.main(["logs/tracks", "--output", str(tmp_path), "--opts", "CLUSTERING.WCCN_ROUNDS", "1"])
        assert "set CLUSTERING.WCCN_ROUNDS 0 or CLUSTERING.TRACKS none" in capsys.readouterr().err

    def test_too_many_cameras_are_told_before_the_extraction(self, world, monkeypatch, tmp_path):
        monkeypatch.chdir(world)
        monkeypatch.setattr(labelled_folder, "MOST_CAMERAS", 1)
        monkeypatch.setattr(run_features, "build_feature_loader", None)  # what the extraction needs first
        with pytest.raises(ValueError, match="cameras, but fastreid's class Market1501 reads at most 1"):
            label_images.run(
                label_images.parser().parse_args(
                    ["logs/by_camera_cpu", "--output", str(tmp_path / "out"), "--market", str(tmp_path / "market")]
                )
            )

    @pytest.mark.parametrize(
        "program, options, said",
        [
            (sweep_eps, ["--k1", "5", "--k2", "6"], "CLUSTERING.K2 is 6 but a neighbour list has CLUSTERING.K1 = 5"),
            (sweep_eps, ["--opts", "CLUSTERING.METHOD", "ca_jaccard_dbscan"], "the sweep tries the distances of"),
            (label_images, ["--opts", "CLUSTERING.EPS", "1.5"], "CLUSTERING.EPS is 1.5"),
            (label_images, ["--market", "market", "--test-share", "1.5"], "identities to test with is 1.5"),
            (label_images, ["--links", "--output", "by_camera/found"], "lies in the folder of the images"),
        ],
    )
    def test_what_cannot_be_is_told_before_the_extraction(
        self, world, monkeypatch, tmp_path, capsys, program, options, said
    ):
        monkeypatch.chdir(world)
        monkeypatch.setattr(run_features, "build_feature_loader", None)  # what the extraction needs first
        with pytest.raises(SystemExit):
            program.main(["logs/by_camera_cpu", "--output", str(tmp_path / "out"), *options])
        assert said in capsys.readouterr().err

    def test_features_that_the_run_clusters_otherwise_are_not_swept(self, world, monkeypatch, tmp_path, capsys):
        monkeypatch.chdir(world)
        out, normalised = tmp_path / "out", ["CLUSTERING.CAMERA_NORMALIZATION", "True", "CLUSTERING.EPS", "0.9"]
        label_images.main(["logs/by_camera_cpu", "--output", str(out), "--opts", *normalised])
        with pytest.raises(SystemExit):
            sweep_eps.main(["--features", str(out / "features.npz")])
        others = "CLUSTERING.CAMERA_NORMALIZATION, CLUSTERING.WCCN_ROUNDS"
        assert f"clusters them otherwise ({others})" in capsys.readouterr().err

    def test_a_sweep_of_stored_features_is_that_of_the_run(self, world, monkeypatch):
        monkeypatch.chdir(world)
        arguments = ["--eps", "0.4:0.6:0.1", "--min-samples", "2", "--output"]
        sweep_eps.main(["logs/tracks", *arguments, "of_run"])
        sweep_eps.main(["--features", "of_run/features.npz", *arguments, "of_features"])
        assert rows(world / "of_run" / "eps_sweep.csv") == rows(world / "of_features" / "eps_sweep.csv")
        sweep_eps.main(["--features", "of_run/features.npz", "--k1", "3", *arguments, "of_k1"])
        assert rows(world / "of_run" / "eps_sweep.csv") != rows(world / "of_k1" / "eps_sweep.csv")


class TestCheckDataset:
    def test_what_is_not_asked_for_is_said(self, world, capsys):
        check_dataset.main(
            [str(world / "crops"), "--pattern", "(?P<camera>cam[0-9]+)_", "--csv", str(world / "crops.csv")]
        )
        said = capsys.readouterr().out
        assert "note: the group camera of --pattern is not used: add --camera-from pattern" in said
        assert "the column camera of" in said and "add --camera-from csv" in said
        check_dataset.main([str(world / "by_camera"), "--camera-from", "folder"])
        assert "note:" not in capsys.readouterr().out

    def test_a_link_beside_its_image_is_told(self, world, tmp_path, capsys):
        """A training would end with an error; a copy is no matter."""
        shutil.copytree(world / "by_camera", tmp_path / "crops")
        image = next((tmp_path / "crops").rglob("*.jpg"))
        shutil.copy(image, image.with_name("copy.jpg"))
        check_dataset.main([str(tmp_path / "crops"), "--camera-from", "folder"])
        assert "note:" not in capsys.readouterr().out
        image.with_name("zlink.jpg").symlink_to(image)
        check_dataset.main([str(tmp_path / "crops"), "--camera-from", "folder"])
        assert re.search(
            "note: .*zlink.jpg is, through a link, an image that is there already", capsys.readouterr().out
        )

    def test_a_link_is_named_as_it_was_given(self, world, tmp_path):
        """Rows of the csv that name images through it are found again by the written config."""
        (tmp_path / "link").symlink_to(world / "crops")
        names = sorted(path.name for path in (world / "crops").iterdir())
        own_images.table(
            tmp_path / "all.csv", [{"path": str(tmp_path / "link" / name), "camera": "a"} for name in names]
        )
        argv = [str(tmp_path / "link"), "--camera-from", "csv", "--csv", str(tmp_path / "all.csv")]
        check_dataset.main([*argv, "--write-config", str(tmp_path / "my.yml")])
        assert len(scan_training_images(load_config(tmp_path / "my.yml").DATASETS.FOLDER)) == len(names)

    def test_names_that_are_no_utf8(self, tmp_path, capsys):
        crops = tmp_path / "crops"
        crops.mkdir()
        Image.new("RGB", (64, 128), "red").save(crops / "a.png")
        (crops / "x\udcff.jpg").write_bytes(b"\xff\xd8 no")
        check_dataset.main([str(crops), "--output", str(tmp_path / "out")])
        assert "x\\xff.jpg" in capsys.readouterr().out and "x\\xff.jpg" in (tmp_path / "out/dataset.md").read_text()

    def test_broken_and_duplicate_files(self, tmp_path, capsys):
        crops = tmp_path / "crops"
        crops.mkdir()
        Image.new("RGB", (64, 128), "red").save(crops / "a.png")
        Image.new("RGB", (64, 128), "red").save(crops / "b.bmp")
        Image.new("RGB", (60, 120), "blue").save(crops / "c.png")
        (crops / "broken.jpg").write_bytes(b"\xff\xd8 no")
        with pytest.raises(SystemExit):  # the picture would be one of the images
            check_dataset.main([str(crops), "--output", str(crops / "out")])
        assert "lies in the folder of the images" in capsys.readouterr().err and not (crops / "out").exists()
        check_dataset.main([str(crops), "--output", str(tmp_path / "out"), "--write-config", str(tmp_path / "my.yml")])
        said = capsys.readouterr().out
        assert "# 4 images" in said and "broken.jpg" in said and f"{crops}/a.png = {crops}/b.bmp" in said
        assert "CLUSTERING.EPS: 0.55. " in said and "K2: 5" in said  # never more than K1
        config = yaml.safe_load((tmp_path / "my.yml").read_text())
        assert config["DATASETS"]["FOLDER"]["SKIP_UNREADABLE"] is True
        with Image.open(tmp_path / "out" / "dataset.png") as sheet:
            colours = {colour for _, colour in sheet.convert("RGB").getcolors(100_000)}
        assert {(255, 0, 0), (0, 0, 255)} <= colours
        assert said.startswith((tmp_path / "out" / "dataset.md").read_text()[:200])


class TestSweep:
    def test_each_row_is_that_clustering(self):
        features = blobs(12, 8, dimensions=12, spread=0.6)
        truth = torch.arange(12).repeat_interleave(8)
        found = sweep(features, [0.6, 0.4, 0.5], [3, 2], ClusteringConfig(k1=8, k2=3), identities=truth, subsamples=1)
        assert [(row.min_samples, row.eps) for row in found] == [(m, e) for m in (2, 3) for e in (0.4, 0.5, 0.6)]
        labels = {}
        for row in found:
            config = ClusteringConfig(k1=8, k2=3, eps=row.eps, min_samples=row.min_samples)
            labels[row.min_samples, row.eps] = own = Clusterer(config)(features).labels.numpy()
            kept = own >= 0
            assert row.clusters == own.max() + 1 and row.outliers == pytest.approx(100 * (~kept).mean())
            expected = silhouette_score(features.numpy()[kept], own[kept], metric="cosine")
            assert row.silhouette == pytest.approx(expected, abs=1e-5)
            alone = np.where(kept, own, 1000 + np.arange(len(own)))
            assert row.ari == pytest.approx(adjusted_rand_score(truth, alone))
        assert len({row.clusters for row in found}) > 1
        middle = labels[2, 0.5]
        expected = np.mean([agreement(middle, labels[2, 0.4]), agreement(middle, labels[2, 0.6])])
        assert found[1].neighbour_stability == pytest.approx(expected)
        assert found[0].neighbour_stability == pytest.approx(agreement(labels[2, 0.4], middle))

    def test_agreement_by_hand(self):
        # Images 4 and 5 are outliers in both, and do not count. Of the pairs of the other four, the first has {01, 23},
        # the second {01}, 2 and 3 alone: index 1, expected 2 * 1 / 6, largest (2 + 1) / 2.
        found = agreement(np.array([0, 0, 1, 1, -1, -1]), np.array([0, 0, -1, -1, -1, -1]))
        assert found == pytest.approx((1 - 1 / 3) / (1.5 - 1 / 3))
        assert np.isnan(agreement(np.array([-1, -1]), np.array([-1, -1])))

    def test_parts_of_clear_clusters_agree_with_the_whole(self):
        found = sweep(blobs(6, 10), [0.5], [2], ClusteringConfig(k1=8, k2=3), subsamples=3)
        assert found[0].subsample_stability == 1.0 and np.isnan(found[0].neighbour_stability)
        assert suggest(found) is found[0]

    def test_useless_clusters_are_not_suggested(self):
        one = sweep(blobs(1, 30), [0.6, 0.9], [2], ClusteringConfig(k1=20, k2=1))
        assert suggest(one) is None

    def test_tracks(self):
        features, tracks = blobs(4, 6), Tracks(torch.arange(8).repeat_interleave(3))
        config = ClusteringConfig(k1=4, k2=1, tracks="must_link")
        (row,) = sweep(features, [0.5], [2], config, tracks=tracks)
        own = Clusterer(replace(config, eps=0.5, min_samples=2))(features, tracks=tracks)
        assert row.clusters == own.num_clusters == 4
        assert sweep(features, [0.5], [2], replace(config, tracks="none"))[0] != row

    def test_a_plain_matrix(self, tmp_path, capsys):
        np.save(tmp_path / "features.npy", blobs(6, 6).numpy())
        argv = ["--features", str(tmp_path / "features.npy"), "--eps", "0.3:0.5:0.1", "--min-samples", "2", "--k1", "6"]
        sweep_eps.main([*argv, "--k2", "2", "--output", str(tmp_path / "out")])
        assert [row["eps"] for row in rows(tmp_path / "out" / "eps_sweep.csv")] == ["0.3", "0.4", "0.5"]
        assert "ARI" not in capsys.readouterr().out.splitlines()[0]


class TestLabelledFolders:
    def files(self, tmp_path, count=8):
        paths = []
        for number in range(count):
            paths.append(str(tmp_path / "in" / f"{number}.{'png' if number % 2 else 'jpg'}"))
            Path(paths[-1]).parent.mkdir(exist_ok=True)
            Image.new("RGB", (8, 16), (30 * number, 0, 0)).save(paths[-1])
        return paths

    def test_other_formats_become_jpeg(self, tmp_path):
        paths = self.files(tmp_path)
        labels, cameras = np.array([0, 0, 1, 1, 2, 2, -1, 2]), np.array([0, 1, 0, 1, 0, 0, 0, 1])
        written = write_market_folder(tmp_path / "out", paths, labels, cameras, test_share=0.3)
        assert (written.identities, written.test_identities) == (3, 1) and written.names[6] is None
        assert written.gallery == 1  # of the third: the first two would have queries and nothing to find
        assert written.train + written.query + written.gallery == 7 and written.query == 2
        for path, name in zip(paths, written.names):
            if name is not None:
                with Image.open(tmp_path / "out" / name) as image, Image.open(path) as original:
                    assert image.format == "JPEG" and abs(image.getpixel((4, 8))[0] - original.getpixel((4, 8))[0]) < 6
        assert Path(paths[0]).read_bytes() == (tmp_path / "out" / written.names[0]).read_bytes()
        assert "people" in (tmp_path / "out" / "README.txt").read_text()

    def test_without_cameras_all_is_to_train_on(self, tmp_path):
        labels = np.array([0, 0, 1, 1])
        written = write_market_folder(tmp_path / "out", self.files(tmp_path, 4), labels, np.zeros(4, int))
        assert (written.train, written.query, written.gallery) == (4, 0, 0)

    def test_the_draw_depends_on_the_seed(self, tmp_path):
        paths = self.files(tmp_path) * 3
        labels, cameras = np.arange(24) // 3, np.arange(24) % 3 // 2
        folders = [write_market_folder(tmp_path / str(i), paths, labels, cameras, seed=i // 2) for i in range(3)]
        assert folders[0].names == folders[1].names != folders[2].names and folders[0].test_identities == 2

    def test_the_share_is_of_those_that_can_be_tested(self, tmp_path):
        """16 people, of whom four were seen by two cameras and three images: one of them, not four."""
        labels = np.array([*range(16), 0, 1, 2, 3, 0, 1, 2, 3])
        cameras = np.array([0] * 16 + [1] * 8)
        written = write_market_folder(tmp_path / "out", self.files(tmp_path) * 3, labels, cameras)
        assert (written.test_identities, written.query, written.gallery, written.train) == (1, 2, 1, 21)

    def test_pictures_are_those_that_the_training_saw(self, tmp_path):
        """Turned as the camera says, and in three colours: stock fastreid reads a JPEG in CMYK as four."""
        turned = Image.Exif()
        turned[0x0112] = 6
        paths = [str(tmp_path / name) for name in ("a.png", "b.jpg", "c.jpg")]
        Image.new("RGB", (20, 8), (200, 0, 0)).save(paths[0], exif=turned)
        Image.new("CMYK", (8, 20), (0, 200, 200, 0)).save(paths[1])
        Image.new("RGB", (20, 8), (200, 0, 0)).save(paths[2], exif=turned)
        written = write_market_folder(tmp_path / "out", paths, np.array([0, 0, 1]), np.array([0, 1, 0]))
        for path, name in zip(paths, written.names):
            expected = read_image(path)
            image = read_image(str(tmp_path / "out" / name))
            assert (image.size, image.mode) == ((8, 20), "RGB") and expected.size == (8, 20)
        assert (tmp_path / "out" / written.names[2]).read_bytes() == Path(paths[2]).read_bytes()

    def test_copies(self, tmp_path):
        paths = self.files(tmp_path, 3)
        folder = write_identity_folders(tmp_path / "out", paths, np.array([1, -1, 1]), copy=True)
        found = sorted(path.relative_to(folder).as_posix() for path in folder.glob("*/*"))
        assert found == ["identity_0001/000000_0.jpg", "identity_0001/000002_2.jpg", "outliers/000001_1.png"]
        assert not any(path.is_symlink() for path in folder.glob("*/*"))

    def test_a_file_that_is_gone_leaves_nothing(self, tmp_path):
        paths = self.files(tmp_path, 4)
        Path(paths[3]).unlink()
        for write in (write_market_folder, write_identity_folders):
            facts = (np.array([0, 0, 1, 1]), np.zeros(4, int)) if write is write_market_folder else (np.zeros(4, int),)
            keywords = {} if write is write_market_folder else {"copy": True}
            with pytest.raises(FileNotFoundError):
                write(tmp_path / "out", paths, *facts, **keywords)
        assert sorted(path.name for path in tmp_path.iterdir()) == ["in"]

    @pytest.mark.parametrize(
        "labels, cameras, share, part",
        [
            ([-1, -1], [0, 0], None, "no identity to write"),
            ([0, 1501], [0, 0], None, "1502 identities, but fastreid's class Market1501 reads at most 1501"),
            ([0, 1], [0, 6], None, "7 cameras"),
            ([0, 1], [0, 1], 0.5, "several cameras, and one of them more than once, have seen 0"),
            ([0, 1], [0, 1], 1.5, r"must be in \[0, 1\)"),
        ],
    )
    def test_refused(self, labels, cameras, share, part, tmp_path):
        with pytest.raises(ValueError, match=part):
            write_market_folder(tmp_path / "out", ["a", "b"], np.array(labels), np.array(cameras), test_share=share)
        assert not (tmp_path / "out").exists()


def test_centroids_of_one_cluster():
    found = centroid_distances(torch.eye(3), torch.tensor([0, 0, -1]))
    assert found.next.tolist() == [-1, -1, 0] and torch.isnan(found.margin).all()


def snapshot(folder: Path) -> dict:
    """Times of all files but the logs, which this process's earlier trainings still write to."""
    return {path: path.stat().st_mtime_ns for path in sorted(folder.rglob("*")) if path.name != "log.txt"}


# Program, arguments ({w}: the page's folder, {t}: an empty one with an npy and a broken csv), and parts of the line.
MISTAKES = {
    "check: no folder": (check_dataset, "{w}/nowhere", "no folder of images at"),
    "check: a file": (check_dataset, "{w}/crops.yml", "is a file; a folder of images is needed"),
    "check: no image": (check_dataset, "{t}", "holds no image"),
    "check: only broken images": (check_dataset, "{t}/broken", "None of the 1 images"),
    "check: wrong pattern": (check_dataset, "{w}/crops --camera-from pattern --pattern (?P<camera>x)", "does not fit"),
    "check: no pattern": (check_dataset, "{w}/crops --camera-from pattern", "there is no pattern"),
    "check: csv of unknown files": (check_dataset, "{w}/tracks --camera-from csv --csv {w}/crops.csv", "names images"),
    "check: csv without a column": (check_dataset, "{w}/crops --track-from csv --csv {w}/crops.csv", "lacks track"),
    "check: no csv": (check_dataset, "{w}/crops --camera-from csv --csv {w}/no.csv", "no csv file"),
    "check: a folder for identity and track": (
        check_dataset,
        "{w}/by_camera --identity-from folder --track-from folder",
        "identity_from and track_from are both 'folder'",
    ),
    "check: config is there": (check_dataset, "{w}/crops --write-config {w}/crops.yml", "is there already"),
    "check: config is no yml": (check_dataset, "{w}/crops --write-config {w}/my.txt", "ends in .yml"),
    "check: output is a file": (check_dataset, "{w}/crops --output {w}/crops.yml", "it is a file"),
    "check: config below a file": (check_dataset, "{w}/crops --write-config {w}/crops.yml/a.yml", "is a file"),
    "sweep: no run": (sweep_eps, "{w}/nowhere", "no run or checkpoint"),
    "sweep: nothing named": (sweep_eps, "", "Name either a run"),
    "sweep: two things named": (sweep_eps, "{w}/logs/crops --features {t}/a.npy", "Name either a run"),
    "sweep: words for numbers": (sweep_eps, "{w}/logs/crops --eps few", "--eps is 'few'"),
    "sweep: backward range": (sweep_eps, "{w}/logs/crops --eps 0.7:0.3:0.1", "a range is first:last:step"),
    "sweep: eps of 2": (sweep_eps, "{w}/logs/crops --eps 0.5,2", "lies between 0 and 1"),
    "sweep: half a sample": (sweep_eps, "{w}/logs/crops --min-samples 2.5", "whole numbers"),
    "sweep: infinitely many": (sweep_eps, "{w}/logs/crops --min-samples inf", "whole numbers"),
    "sweep: no features": (sweep_eps, "--features {t}/no.npy", "no file of features"),
    "sweep: a file of words": (sweep_eps, "--features {t}/bad.csv", "is no npy or npz file"),
    "sweep: whole numbers": (sweep_eps, "--features {t}/a.npy --output {t}/out", "a matrix of floats"),
    "sweep: nan": (sweep_eps, "--features {t}/nan.npy --output {t}/out", "NaN or infinite"),
    "sweep: k2 above k1": (sweep_eps, "--features {t}/ok.npy --k1 3 --output {t}/out", "CLUSTERING.K2 is 6"),
    "sweep: unknown key": (sweep_eps, "{w}/logs/crops --output {t}/out --opts SOLVER.LR 1", "no config key SOLVER.LR"),
    "label: no run": (label_images, "{w}/nowhere --output {t}/out", "no run or checkpoint"),
    "label: labelled already": (label_images, "{w}/logs/crops --output {w}/found", "is there already"),
    "label: market is there": (label_images, "{w}/logs/crops --output {t}/out --market {w}/crops", "is there already"),
    "label: copy alone": (label_images, "{w}/logs/crops --output {t}/out --copy", "--copy goes with --links"),
    "label: output is a file": (label_images, "{w}/logs/crops --output {w}/crops.yml", "it is a file"),
    "label: market below a file": (
        label_images,
        "{w}/logs/crops --output {t}/out --market {w}/crops.yml/market",
        "--market .* is a file",
    ),
    "label: clusters of other images": (
        label_images,
        "{w}/logs/crops --output {t}/out --clusters {w}/logs/tracks/clusters.csv",
        "has no row for",
    ),
    "label: no clusters.csv": (
        label_images,
        "{w}/logs/crops --output {t}/out --clusters {t}/bad.csv",
        "no clusters.csv",
    ),
    "label: all outliers": (
        label_images,
        "{w}/logs/crops --output {t}/out --links --opts CLUSTERING.MIN_SAMPLES 500",
        "All 54 images are outliers",
    ),
    "label: no cameras to test with": (
        label_images,
        "{w}/logs/crops --output {t}/out --market {t}/market --test-share 0.5",
        "several cameras, and one of them more than once, have seen 0",
    ),
    "train: images are gone": (
        train,
        "--config-file {w}/crops.yml DATASETS.FOLDER.PATH {w}/gone",
        "no folder of images",
    ),
    "train: cameras of nowhere": (
        train,
        "--config-file {w}/crops.yml DATASETS.USE_CAMERAS True",
        "own.yml",
    ),
}


@pytest.mark.parametrize("program, command, part", MISTAKES.values(), ids=MISTAKES)
def test_mistakes(program, command, part, world, tmp_path, capsys, monkeypatch):
    (tmp_path / "bad.csv").write_text("path,label\na,b\n")
    np.save(tmp_path / "a.npy", np.arange(6).reshape(2, 3))
    np.save(tmp_path / "nan.npy", np.full((4, 3), np.nan))
    np.save(tmp_path / "ok.npy", np.eye(8))
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "b.jpg").write_bytes(b"no image")
    folder = "{t}/broken" if command == "{t}" else command
    if folder != command:
        (tmp_path / "broken" / "b.jpg").rename(tmp_path / "broken" / "b.txt")
    monkeypatch.chdir(world)  # the page's runs name their images as the page does
    argv = shlex.split(folder.format(w=world, t=tmp_path))
    if program is train:
        argv += [str(item) for item in small_options({**TINY, "OUTPUT_DIR": str(tmp_path / "run")})]
    before = (snapshot(world), snapshot(tmp_path))
    with pytest.raises(SystemExit) as end:
        program.main(argv)
    assert end.value.code == 1
    shown = capsys.readouterr()
    (line,) = [line for line in shown.err.splitlines() if line.startswith("error: ")]
    assert re.search(part, line) and "Traceback" not in shown.err + shown.out
    if program is not train:  # a training keeps its log
        assert (snapshot(world), snapshot(tmp_path)) == before
