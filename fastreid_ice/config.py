"""Every configuration key that ICE adds to fastreid's, with default, meaning, unit or range, and origin.

Defaults are those of the reference code ("ref"), from which the published numbers come; the paper's symbol stands
beside them. Keys of fastreid that ICE sets differently are in configs/ICE/Base-ICE.yml.
"""

from __future__ import annotations

import fastreid_ice.compat  # noqa: F401  (repairs fastreid before it is imported)

from fastreid.config import CfgNode as CN

from fastreid_ice.clustering import config_defaults


def add_ice_config(cfg: CN) -> None:
    """Add the keys of ICE to a fastreid config, in place. Call it before ``merge_from_file``."""
    # Seed of every random choice. A run with a seed >= 0 is repeatable on CPU, whatever DATALOADER.NUM_WORKERS is;
    # with -1 a seed is drawn and logged. fastreid itself always draws one. (INPUT.RPT, whose patches are kept in each
    # worker, is the exception.) ref: 1.
    cfg.SEED = 1
    _add_model(cfg.MODEL)
    _add_losses(cfg.MODEL.LOSSES)
    _add_clustering(cfg)
    _add_input(cfg.INPUT)
    _add_schedule(cfg)
    _add_source(cfg)
    _add_loader(cfg.DATALOADER)
    _add_folder(cfg)
    # Write <OUTPUT_DIR>/report.html at the end of a run: curves, clusters, rankings, costs, config, in one file.
    cfg.REPORT = CN({"ENABLED": True})
    # Whether it shows images. They are pictures of people: set False for a report to hand around.
    cfg.REPORT.PICTURES = True


def _add_model(model: CN) -> None:
    model.ICE = CN()
    # Modules of your own to import before the rest of the config is read: names, found beside the config file, in the
    # working directory or where Python looks. What they register (losses, memories, clusterings, backbones, datasets)
    # can be named in the config; a function add_config(cfg) in them may add keys. See docs/extending.md.
    model.ICE.IMPORTS = ()
    # What the losses compare with: "MemoryBank" (ref: centroids and proxies, constant within an epoch),
    # "MomentumMemory" (they follow the encoder from step to step), "HardMeanMemory" (the same, with a second centroid
    # for each cluster that follows its hardest images, as HHCL has it), or a registered one of your own.
    model.ICE.MEMORY = "MemoryBank"
    # Of "MomentumMemory": share of the old row in [0, 1) (Cluster-Contrast, HHCL: 0.1; CAP, SpCL: 0.2), and which
    # images of the batch move it: "each" in turn (Cluster-Contrast), their "mean", or the "hardest". With which
    # embeddings: the "keys" of the momentum encoder, or the online encoder's "queries" (all these methods).
    model.ICE.MOMENTUM_MEMORY = CN({"MOMENTUM": 0.1, "UPDATE": "each", "FEATURES": "keys"})
    # Momentum a of the momentum encoder, in [0, 1): m <- a m + (1 - a) online after each step. ref: 0.999.
    model.ICE.MOMENTUM = 0.999
    # In how many contiguous chunks of the batch each process normalises: with 4, one GPU sees the batch statistics
    # of the four GPUs that the published numbers were made on. 0: 4 / number of processes (at least 1); for syncBN,
    # which normalises over all processes together, 1.
    model.ICE.BN_CHUNKS = 0
    # Share of a batch in the running statistics of batch normalisation, in (0, 1]: with 0.02 an encoder is evaluated
    # and clustered with those of about the last fifty batches. Not in the paper. ref: 0.1, torch's.
    model.ICE.BN_MOMENTUM = 0.1
    # Permute the batch of the momentum encoder when there is more than one chunk (as MoCo's shuffled BN; ref: yes).
    model.ICE.SHUFFLE_BN = True
    # Also run the two passes whose output the reference code never uses: they only move the running statistics
    # of the BN layers, and cost 40 % of a step. ref: yes; ours leaves them out.
    model.ICE.UNUSED_PASSES = False
    # Whether the un-augmented view passes the momentum encoder. Only SoftInstanceLoss looks at its embeddings; without
    # that it moves the running statistics of the momentum encoder and nothing else, at a fifth of a step's passes: they
    # then are of half as many batches, so that BN_MOMENTUM has to be twice as high for the same average. ref: True.
    model.ICE.WEAK_PASS = True
    # Which encoder evaluates, is clustered with and is exported: "momentum" (ref) or "online".
    model.ICE.EVAL_ENCODER = "momentum"
    # Keep images, feature maps and kernels with the channels innermost. Tensor cores want them so: try it with
    # SOLVER.AMP on a GPU. More than one chunk is then normalised chunk by chunk. ref: False.
    model.ICE.CHANNELS_LAST = False
    # Record the encoders' passes as CUDA graphs in the first step of a run and replay them: a GPU then does not wait
    # for the host between short kernels. Same kernels; keeps the memory of the passes between the steps. One process
    # on CUDA, without SOLVER.ACCUMULATION, DATASETS.SOURCE, layers that thaw (MODEL.FREEZE_LAYERS), syncBN and GhostBN.
    model.ICE.CUDA_GRAPHS = False


def _add_losses(losses: CN) -> None:
    """``MODEL.LOSSES.NAME`` lists the losses that are on; these are their parameters."""
    losses.AGNOSTIC = CN()
    losses.AGNOSTIC.TEMPERATURE = 0.5  # tau_a
    losses.AGNOSTIC.SMOOTHING = 0.1  # label smoothing, in [0, 1). ref: 0.1; the paper's formula has none
    losses.AGNOSTIC.NORMALIZE_QUERY = False  # ref: the query keeps its length
    losses.AGNOSTIC.SCALE = 1.0  # weight in the sum of the losses

    # "HardMeanLoss" (HHCL, arXiv 2109.12333) with MODEL.ICE.MEMORY HardMeanMemory.
    losses.HARD_MEAN = CN()
    losses.HARD_MEAN.TEMPERATURE = 0.05  # tau
    losses.HARD_MEAN.SCALE_HARD = 0.5  # lambda: weight of the centroids that follow the hardest images
    losses.HARD_MEAN.SCALE_MEAN = 0.5  # 1 - lambda; the authors' code has lambda (1 - lambda) = 0.25

    losses.CROSS_CAMERA = CN()
    losses.CROSS_CAMERA.TEMPERATURE = 0.07  # tau_c
    losses.CROSS_CAMERA.NUM_NEGATIVES = 50  # N_neg: the most similar proxies of other clusters
    # "dimension": divide each dimension by its norm over all proxies (ref); "proxy": each proxy has length 1.
    losses.CROSS_CAMERA.PROXY_NORM = "dimension"
    # With fewer than NUM_NEGATIVES other proxies, count positives a second time in the denominator (ref).
    losses.CROSS_CAMERA.PAD_WITH_POSITIVES = True
    # "all": the own camera's proxy is a positive too (ref); "other_cameras": it is not.
    losses.CROSS_CAMERA.POSITIVES = "all"
    # "joint": all positives share one softmax with the negatives (ref); "single": each has one of its own.
    losses.CROSS_CAMERA.DENOMINATOR = "joint"
    # "camera": mean per camera, summed over the batch's cameras (ref); "image": mean over the batch.
    losses.CROSS_CAMERA.AVERAGE = "camera"
    losses.CROSS_CAMERA.SCALE = 0.5  # weight in the sum of the losses

    # "IntraCameraLoss" (CAP, AAAI 2021) and "OnlineAssociationLoss" (O2CAP, arXiv 2201.05820), made for proxies that
    # move: MODEL.ICE.MEMORY MomentumMemory. See docs/recipes.md.
    losses.INTRA_CAMERA = CN()
    losses.INTRA_CAMERA.TEMPERATURE = 0.07  # tau
    losses.INTRA_CAMERA.AVERAGE = "camera"  # as above
    losses.INTRA_CAMERA.SCALE = 1.0

    losses.ONLINE_ASSOCIATION = CN()
    losses.ONLINE_ASSOCIATION.TEMPERATURE = 0.07  # tau
    losses.ONLINE_ASSOCIATION.NUM_POSITIVES = 3  # among the best proxy of each camera
    losses.ONLINE_ASSOCIATION.NUM_NEGATIVES = 50  # the most similar of the other proxies
    # Weight of the image in the ranking of the proxies, in [0, 1]; the rest is that of the image's own proxy.
    losses.ONLINE_ASSOCIATION.BALANCE = 0.15
    losses.ONLINE_ASSOCIATION.AVERAGE = "camera"  # as above
    losses.ONLINE_ASSOCIATION.SCALE = 1.0

    losses.HARD_INSTANCE = CN()
    losses.HARD_INSTANCE.TEMPERATURE = 0.1  # tau_h_ins
    losses.HARD_INSTANCE.SCALE = 1.0

    losses.SOFT_INSTANCE = CN()
    losses.SOFT_INSTANCE.TEMPERATURE = 0.4  # tau_s_ins
    losses.SOFT_INSTANCE.SCALE = 10.0  # lambda_s


def _add_clustering(cfg: CN) -> None:
    """The parameters of :class:`fastreid_ice.clustering.ClusteringConfig`, which documents each, and the period."""
    cfg.CLUSTERING = CN(config_defaults())
    # Cluster before every PERIOD-th epoch, and before the first epoch of every run. ref: 1.
    cfg.CLUSTERING.PERIOD = 1
    # What becomes of images without a cluster: "drop" (ref: they are not trained on) or "instances" (SpCL: each is a
    # class of its own, with a centroid and without camera proxies, see docs/recipes.md).
    cfg.CLUSTERING.OUTLIERS = "drop"
    # EPS of the last epoch: it falls (or rises) linearly from CLUSTERING.EPS, which is the first epoch's. As features
    # get better, images of one person get nearer. 0: EPS throughout (ref).
    cfg.CLUSTERING.EPS_END = 0.0


def _add_input(inputs: CN) -> None:
    """The strong view is fastreid's training transform plus blur; random erasing has the law of the reference."""
    # Gaussian blur of PIL with a radius (pixels) uniform in RADIUS.
    inputs.BLUR = CN({"ENABLED": False})
    inputs.BLUR.PROB = 0.5
    inputs.BLUR.RADIUS = [0.1, 2.0]
    # Random erasing (INPUT.REA): share of the image's area, and height / width drawn uniformly (torchvision draws
    # its logarithm uniformly). The colour INPUT.REA.VALUE is in 0..255, before the normalisation in the model.
    inputs.REA.AREA = [0.02, 0.4]
    inputs.REA.ASPECT = [0.3, 1 / 0.3]


def _add_schedule(cfg: CN) -> None:
    cfg.SOLVER.ITERS_PER_EPOCH = 400  # steps between two clusterings. ref: 400 (MSMT17 too)
    # Epochs of linear warm-up from WARMUP_FACTOR to 1, constant within an epoch (ref: 10). fastreid's own
    # WARMUP_ITERS warms up by step; only one of the two may be set.
    cfg.SOLVER.WARMUP_EPOCHS = 10
    # Gradients of how many steps are averaged for one update of the weights; the momentum encoder and the memory move
    # with it. It must divide ITERS_PER_EPOCH, which goes on counting batches; WARMUP_ITERS must be 0. Batch statistics
    # and the pairs of the losses stay those of one batch. ref: 1.
    cfg.SOLVER.ACCUMULATION = 1
    # Take only algorithms that repeat themselves bit for bit, without TF32, from the first epoch of a run to its end:
    # slower on a GPU, and the same as ever on the CPU. An operation that has none is an error. ref: False.
    cfg.SOLVER.DETERMINISTIC = False
    # What the encoders compute in with SOLVER.AMP.ENABLED: "float16" (CUDA only) or "bfloat16" (CPU too). Losses,
    # memory, clustering and weights stay float32. ref: float32.
    cfg.SOLVER.AMP.DTYPE = "float16"
    # Compute in SOLVER.AMP.DTYPE in evaluation mode too: features for the clustering, scores, search. The embeddings
    # come out as float32. On the CPU only with bfloat16. ref: float32.
    cfg.TEST.AMP = False
    # What runs the encoder in evaluation mode, for the features to cluster and for the scores: "torch"; "folded", a
    # copy whose batch normalisations are folded into the convolutions, channels last; or "onnxruntime", that copy run
    # by onnxruntime, on the CPU only (the extra "export" has it). Less time on a CPU (docs/benchmarks.md), and equal up
    # to rounding, which may move an image at the border of a cluster. ref: torch.
    cfg.TEST.ENGINE = "torch"
    # How many of the periodic checkpoints are kept (beside model_best.pth and model_final.pth); 0 keeps all. --resume
    # falls back to the one before, should the newest not be readable after a crash of the machine or a full disk.
    cfg.SOLVER.CHECKPOINT_KEEP = 2
    # Evaluate the initial weights too, as epoch 0 of the results.
    cfg.TEST.EVAL_START = False
    # Take each test camera's mean and standard deviation out of the features before they are ranked. It uses the camera
    # ids of the test images and all of them at once: report scores with and without it, never mixed. Not in the paper.
    cfg.TEST.CAMERA_NORMALIZATION = False
    # Let the training ignore camera ids (camera-agnostic ICE): every image counts as taken by one camera.
    # Evaluation still needs the test set's camera ids.
    cfg.DATASETS.USE_CAMERAS = True


def _add_source(cfg: CN) -> None:
    """Domain adaptation: labelled images beside the unlabelled ones, see docs/source.md. Not in the paper."""
    # Labelled datasets to train on beside DATASETS.NAMES, the target, which stays without labels. (): none (ref).
    cfg.DATASETS.SOURCE = ()
    # Source images of a batch, beside the SOLVER.IMS_PER_BATCH of the target; 0: as many (SpCL, OpenUnReID).
    cfg.DATASETS.SOURCE_IMS_PER_BATCH = 0
    # Of how many images of each source class under each camera, drawn anew each time, its centroid and its proxies are
    # the means. Less time where the source is large. 0: of all.
    cfg.DATASETS.SOURCE_SAMPLE = 0
    # Weight of the source's losses beside the target's, above 0 (SpCL: 1).
    cfg.MODEL.LOSSES.SOURCE_SCALE = 1.0


def source_ims_per_batch(cfg: CN) -> int:
    """Source images of a batch, over all processes; 0 without DATASETS.SOURCE."""
    if not cfg.DATASETS.SOURCE:
        return 0
    return cfg.DATASETS.SOURCE_IMS_PER_BATCH or cfg.SOLVER.IMS_PER_BATCH


def _add_loader(loader: CN) -> None:
    """The training images are decoded in every epoch, for the clustering and for each of their views."""
    # With CLUSTERING.OUTLIERS instances: largest share of outliers among the images that are drawn, in (0, 1]. In the
    # first epochs there can be ten times as many outliers as clusters. 1: each of them as often as a cluster (SpCL).
    loader.OUTLIER_SHARE = 0.5
    # Decode and resize them once: "none", "ram" (3 x height x width bytes an image, shared by the workers of a process)
    # or "disk" (as much in a file, shared by all processes of a machine and used again by later runs). The test images
    # too, if the run is evaluated more than once. Not in the paper; the same pixels bit for bit.
    loader.CACHE = "none"
    # Folder of that file; "": <OUTPUT_DIR>/image_cache. Runs on the same images share it when they name the same.
    loader.CACHE_DIR = ""


def _add_folder(cfg: CN) -> None:
    """The dataset ``UnlabeledFolder``: images of your own, see docs/own_cameras.md."""
    cfg.DATASETS.FOLDER = folder = CN()
    # Folder of the training images, at any depth: jpg, png, webp, bmp.
    folder.PATH = ""
    # Where the camera of an image is from: "none" (not known), "folder" (the first folder below PATH), "pattern" (the
    # group (?P<camera>...) of PATTERN) or "csv" (the column camera of CSV).
    folder.CAMERA_FROM = "none"
    # Where its identity is from, if you know it: likewise; "folder" is the folder that holds the image. Only scored
    # against, unless CLUSTERING.METHOD is ground_truth.
    folder.IDENTITY_FROM = "none"
    # Where its track is from: likewise, see CLUSTERING.TRACKS. Tracks of different cameras are different tracks.
    folder.TRACK_FROM = "none"
    # Regular expression, searched in an image's name relative to PATH, with any of the named groups camera, identity,
    # track, frame (whole number), score, such as (?P<camera>c[0-9]+)_(?P<frame>[0-9]+).
    folder.PATTERN = ""
    # File with the header path,camera,identity,track,frame,score (path and any of the others) and a row for each
    # image; its paths are relative to PATH or to its own folder.
    folder.CSV = ""
    # Leave out training images whose detection scores less (a group score in PATTERN, or a column of CSV); 0: none.
    folder.MIN_SCORE = 0.0
    # Leave out images that cannot be decoded, and log how many; else they are an error.
    folder.SKIP_UNREADABLE = False
    # Labelled images to evaluate with, in folders of their own (DATASETS.TESTS ("UnlabeledFolder",)); optional.
    folder.QUERY = ""
    folder.GALLERY = ""
    # As above, for these two. Their identities must be known. Without cameras no gallery image is left out; with them,
    # those of the query's identity and camera are.
    folder.TEST_IDENTITY_FROM = "pattern"
    folder.TEST_CAMERA_FROM = "pattern"
    folder.TEST_PATTERN = ""
    folder.QUERY_CSV = ""
    folder.GALLERY_CSV = ""
