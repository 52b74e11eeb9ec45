"""Starting processes: by fastreid's launch, on several machines, by torchrun, for a script that knows no repairs."""

import argparse
import json
import os
import socket
import subprocess
import sys

from fastreid_ice.compat import __main__ as program
from fastreid_ice.compat import device, launching

import pytest
import torch
import torch.distributed as dist

from fastreid_ice import compat
from tests.conftest import ROOT, SMALL, small_options

# As fastreid's tools/train_net.py: it imports fastreid, repairs nothing, and its main lies in __main__.
SCRIPT = """
import json, sys
from helper import FOLDER
import torch, torch.distributed as dist
from fastreid.engine import default_argument_parser, launch
from fastreid.utils import comm

def main(args):
    total = torch.tensor([float(comm.get_rank() + 1)])
    dist.all_reduce(total)
    told = [comm.get_rank(), comm.get_local_rank(), comm.get_world_size(), comm.get_local_size(), total.item(),
            comm.all_gather(comm.get_rank()), dist.get_backend(), __name__]
    (FOLDER / f"{comm.get_rank()}.json").write_text(json.dumps(told))

if __name__ == "__main__":
    assert sys.argv[0] == __file__ and sys.path[0] == str(FOLDER) and sys.modules["__main__"].main is main
    args = default_argument_parser().parse_args()
    launch(main, args.num_gpus, num_machines=args.num_machines, machine_rank=args.machine_rank, dist_url=args.dist_url,
           args=(args,))
    sys.exit(7)
"""


@pytest.fixture
def script(tmp_path):
    """SCRIPT in a folder of its own, beside a module that it imports."""
    folder = tmp_path / "tools"
    folder.mkdir()
    (folder / "train.py").write_text(SCRIPT)
    (folder / "helper.py").write_text("from pathlib import Path\nFOLDER = Path(__file__).parent\n")
    return folder / "train.py"


def start(script, *arguments, **environment):
    """Run a script behind the repairs, from a folder that has nothing to do with it."""
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "fastreid_ice.compat", str(script), *arguments]
    return subprocess.Popen(
        command,
        cwd=script.parent.parent,
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": "", **environment},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def finish(*processes, code=7):
    """Wait for all, and look at their exit codes; 7 is the scripts' own."""
    try:
        for process in processes:
            said, errors = process.communicate(timeout=300)
            assert process.returncode == code, errors or said
    finally:
        for process in processes:
            process.kill()
            process.communicate()


def free_port():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


def test_two_machines(script):
    """Each process is spawned; it finds main in a script that would fail at its first import without the repairs."""
    url = f"tcp://127.0.0.1:{free_port()}"
    finish(*(start(script, "--num-machines=2", f"--machine-rank={i}", f"--dist-url={url}") for i in range(2)))
    for rank in range(2):
        told = json.loads((script.parent / f"{rank}.json").read_text())
        assert told == [rank, 0, 2, 1, 3.0, [0, 1], "gloo", "__mp_main__"]


def test_trainings_on_two_machines_and_by_torchrun_are_equal(tiny_dataset, tmp_path):
    """tools/train_net.py for real, two processes each time: started as two machines, and as one by torchrun."""

    def training(name, *launcher, machine=()):
        own = {"MODEL.ICE.IMPORTS": ("tests.tiny",), "DATASETS.TESTS": (), "OUTPUT_DIR": str(tmp_path / name)}
        program = [str(ROOT / "tools" / "train_net.py"), "--config-file", str(ROOT / "configs" / "ICE" / "demo.yml")]
        return subprocess.Popen(
            [sys.executable, *launcher, *program, *machine, *map(str, small_options({**SMALL, **own}))],
            env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
        )

    url = f"tcp://127.0.0.1:{free_port()}"
    machines = [("--num-machines", "2", "--machine-rank", str(rank), "--dist-url", url) for rank in range(2)]
    torchrun = ("-m", "torch.distributed.run", "--nproc-per-node=2", "--master-addr=127.0.0.1")
    finish(*(training("machines", machine=machine) for machine in machines), code=0)
    finish(training("torchrun", *torchrun, f"--master-port={free_port()}"), code=0)
    one, other = (
        torch.load(tmp_path / name / "model_final.pth", weights_only=True) for name in ("machines", "torchrun")
    )
    assert all(torch.equal(value, other["model"][key]) for key, value in one["model"].items())
    assert json.loads((tmp_path / "machines" / "run.json").read_text())["processes"] == 2


# Ends its group right after a collective, again and again: gloo's threads still hold tensors then.
AGAIN = """
import sys, torch, torch.distributed as dist
import fastreid_ice.compat
from fastreid_ice.compat import launching

def main(args):
    found = [torch.zeros(3) for _ in range(2)]
    dist.all_gather(found, torch.ones(3))

for port in sys.argv[2:]:
    launching.gloo_worker(0, main, 2, 1, int(sys.argv[1]), f"tcp://127.0.0.1:{port}", (None,))
sys.exit(7)
"""


def test_a_group_that_ends_at_once_does_not_wait_for_ever(tmp_path):
    """Before torch 2.8 its destructor and its threads waited for each other."""
    script = tmp_path / "again.py"
    script.write_text(AGAIN)
    ports = [str(free_port()) for _ in range(8)]
    finish(*(start(script, str(rank), *ports) for rank in range(2)))


def test_a_missing_script_is_one_line(tmp_path, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["compat", str(tmp_path / "missing.py"), "--flag"])
    with pytest.raises(SystemExit) as end:  # a text as its code: Python prints it and exits with 1
        program.main()
    assert end.value.code == f"error: there is no script {tmp_path / 'missing.py'}"


class TestDevice:
    @pytest.fixture(autouse=True)
    def default(self, monkeypatch):
        monkeypatch.setattr(device, "_named", torch.device("cuda"))

    def test_a_gpu_that_is_not_there_is_the_cpu(self, monkeypatch):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
        assert compat.device_in_use() == torch.device("cpu")
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        assert compat.device_in_use() == torch.device("cuda")

    @pytest.mark.parametrize(
        ("file", "opts", "expected"),
        [
            ("{MODEL: {DEVICE: cpu}}", [], "cpu"),
            ("{MODEL: {DEVICE: cpu}}", ["MODEL.DEVICE", "cuda:1"], "cuda:1"),
            ("{_BASE_: base.yml, MODEL: {META_ARCHITECTURE: Baseline}}", ["SEED", "MODEL.DEVICE"], "cuda:2"),
            ("{SEED: 1}", ["MODEL.DEVICE", "cuda:1", "MODEL.DEVICE", "cpu"], "cpu"),
            ("{SEED: 1}", None, "cuda:3"),
            (None, [], "cuda:3"),
        ],
    )
    def test_the_command_line_says_which(self, tmp_path, monkeypatch, file, opts, expected):
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        (tmp_path / "base.yml").write_text("{MODEL: {DEVICE: 'cuda:2'}}")
        path = tmp_path / "config.yml"
        if file is not None:
            path.write_text(file)
        compat.use_device("cuda:3")
        arguments = argparse.Namespace(config_file=str(path), opts=opts)
        assert torch.device(launching.requested_device([1, arguments])) == torch.device(expected)

    @pytest.mark.parametrize(("opts", "worker"), [(["MODEL.DEVICE", "cpu"], "gloo_worker"), ([], "nccl_worker")])
    def test_the_backend_is_that_of_the_device(self, monkeypatch, opts, worker):
        """On a machine with two GPUs."""
        from fastreid.engine import launch

        started = []
        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        monkeypatch.setattr(torch.multiprocessing, "spawn", lambda function, **kwargs: started.append(function))
        launch(print, 2, dist_url="auto", args=(argparse.Namespace(opts=opts),))
        assert [function.__name__ for function in started] == [worker]

    def test_more_processes_than_gpus(self, monkeypatch):
        from fastreid.engine import launch

        monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
        monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
        with pytest.raises(RuntimeError, match="--num-gpus is 3, but torch sees 2"):
            launch(print, 3, dist_url="auto")


@pytest.fixture
def group(monkeypatch):
    """torch.distributed and torch.cuda.set_device as stand-ins; the list of calls, in order."""
    calls = []

    def init(backend, init_method, rank, world_size, timeout):
        calls.append((backend, init_method, rank, world_size, timeout.total_seconds()))

    monkeypatch.setattr(dist, "init_process_group", init)
    monkeypatch.setattr(dist, "destroy_process_group", lambda: calls.append("destroyed"))
    monkeypatch.setattr(launching, "keep_gloo_groups", lambda: None)  # there are none
    monkeypatch.setattr(dist, "new_group", lambda ranks, timeout: ranks)
    monkeypatch.setattr(torch.cuda, "set_device", lambda index: calls.append(f"GPU {index}"))
    monkeypatch.setattr(device, "_named", torch.device("cuda"))
    return calls


def test_an_nccl_rank_that_fails_does_not_wait_for_the_others(group):
    """It chooses its GPU first. Its group is left as it is: ending it would wait for those that wait for this rank."""
    from fastreid.utils import comm

    def fail():
        group.append(comm._LOCAL_PROCESS_GROUP)
        raise OSError("as training may")

    with pytest.raises(OSError, match="as training may"):
        launching.nccl_worker(1, fail, 4, 2, 1, "tcp://somewhere", ())
    assert group == ["GPU 1", ("nccl", "tcp://somewhere", 3, 4, 7200), [2, 3]]
    assert device._named == torch.device("cuda", 1) and comm._LOCAL_PROCESS_GROUP is None


def test_a_gloo_rank_that_fails_ends_its_group(group):
    """The others' next exchange with it fails at once."""

    def fail():
        raise OSError("as training may")

    with pytest.raises(OSError, match="as training may"):
        launching.gloo_worker(1, fail, 4, 2, 1, "tcp://somewhere", ())
    assert group[-1] == "destroyed"


@pytest.mark.parametrize(("threads", "told"), [("1", True), ("2", False)])
def test_torchrun_leaves_one_thread(group, monkeypatch, caplog, threads, told):
    from fastreid.engine import launch

    monkeypatch.setattr(launching, "usable_cores", lambda: 8)
    environment = {"RANK": "0", "WORLD_SIZE": "2", "LOCAL_RANK": "0", "LOCAL_WORLD_SIZE": "2"}
    for name, value in {**environment, "TORCHELASTIC_RUN_ID": "none", "OMP_NUM_THREADS": threads}.items():
        monkeypatch.setenv(name, value)
    with caplog.at_level("INFO", logger=launching.__name__):
        launch(group.append, 1, args=("trained",))
    assert ("OMP_NUM_THREADS=4" in caplog.text) == told


def test_a_rank_of_torchrun_chooses_its_gpu_too(group, monkeypatch):
    from fastreid.engine import launch

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    for name, value in {"RANK": "5", "WORLD_SIZE": "8", "LOCAL_RANK": "1", "LOCAL_WORLD_SIZE": "4"}.items():
        monkeypatch.setenv(name, value)
    launch(group.append, 1, args=("trained",))
    assert group == ["GPU 1", ("nccl", "env://", 5, 8, 7200), "trained", "destroyed"]


def test_a_group_that_does_not_fit_the_machine(monkeypatch):
    from fastreid.engine import launch

    for name, value in {"RANK": "1", "WORLD_SIZE": "2", "LOCAL_RANK": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.delenv("LOCAL_WORLD_SIZE", raising=False)
    with pytest.raises(ValueError, match="said to have 1 processes. Set LOCAL_WORLD_SIZE, or --num-gpus"):
        launch(print, 1)
