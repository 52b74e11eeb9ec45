"""Which copies of fastreid are accepted: the wheel, a clone, and those edited where nothing is repaired."""

import importlib.machinery
import importlib.util
import os
import shutil
import subprocess
import sys

from fastreid_ice.compat import source

import pytest

from tests.conftest import ROOT

WHEEL = "from torch._six import string_classes\n"
REPOSITORY = """TORCH_MAJOR = int(torch.__version__.split('.')[0])
TORCH_MINOR = int(torch.__version__.split('.')[1])

if TORCH_MAJOR == 1 and TORCH_MINOR < 8:
    from torch._six import string_classes
else:
    string_classes = str

"""


@pytest.fixture
def clone(tmp_path):
    """A folder with fastreid's sources in it, as a clone of its repository has them."""
    ignored = shutil.ignore_patterns("__pycache__", "*.so", "*.c")
    shutil.copytree(source.find_fastreid(), tmp_path / "fast-reid" / "fastreid", ignore=ignored)
    return tmp_path / "fast-reid"


def edit(file, old, new):
    text = file.read_text(encoding="utf-8")
    assert old in text
    file.write_text(text.replace(old, new), encoding="utf-8")


def python(code, clone):
    path = os.pathsep.join([str(clone), str(ROOT), os.environ.get("PYTHONPATH", "")])
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-c", code]
    return subprocess.run(command, cwd=clone.parent, env=environment, capture_output=True, text=True, check=False)


def files(folder):
    return {path for path in folder.rglob("*") if path.is_file() and "__pycache__" not in path.parts}


def test_a_clone_is_accepted_and_not_written_to(clone):
    """Even beside an installed wheel: what is imported counts. An evaluation once compiled into the folder.

    The wheel and the repository differ in the imports of data/build.py; this is the one that is not installed.
    """
    build = clone / "fastreid" / "data" / "build.py"
    text = build.read_text(encoding="utf-8")
    installed, other = (REPOSITORY, WHEEL) if REPOSITORY in text else (WHEEL, REPOSITORY)
    edit(build, installed, other)
    before = files(clone)
    result = python(
        "import fastreid_ice.compat, fastreid\n"
        "from fastreid.config import get_cfg\n"
        "from fastreid.data.build import fast_batch_collator\n"
        "from fastreid.evaluation import ReidEvaluator\n"
        "ReidEvaluator(get_cfg(), 1)\n"
        "assert fast_batch_collator([{'img_paths': 'a.jpg'}]) == {'img_paths': ['a.jpg']}\n"
        "print(fastreid.__file__)",
        clone,
    )
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == str(clone / "fastreid" / "__init__.py")
    assert files(clone) == before


def test_an_edited_function_is_refused_by_name(clone):
    edit(clone / "fastreid" / "engine" / "launch.py", "if world_size > 1:", "if world_size > 0:")
    result = python("import fastreid_ice.compat", clone)
    assert result.returncode == 1
    message = result.stderr[result.stderr.index("ImportError") :]
    for part in (
        f"in {clone / 'fastreid'} (pip knows",
        "engine/launch.py: launch\n",
        source.INSTALL_COMMAND,
        "git clone",
    ):
        assert part in message


@pytest.mark.parametrize(
    ("file", "old", "new", "differing"),
    [
        ("solver/build.py", "contiguous=True", "contiguous=False", "solver/build.py: build_optimizer"),
        ("utils/checkpoint.py", "def _load_file(", "def load_file(", "utils/checkpoint.py: Checkpointer._load_file"),
        ("evaluation/rank.py", "def evaluate_rank(", "def evaluate_rank(:", "evaluation/rank.py: evaluate_rank"),
        ("evaluation/rank.py", "num_repeats = 10", "num_repeats = 11", None),
        ("engine/defaults.py", "broadcast_buffers=False", "find_unused_parameters=True", None),
        ("config/defaults.py", "256", "384", None),
    ],
)
def test_only_what_is_repaired_must_be_unedited(clone, file, old, new, differing):
    edit(clone / "fastreid" / file, old, new)
    (clone / "fastreid" / "data" / "datasets" / "my_own.py").write_text("CAMERAS = 3\n")
    assert source.differing_names(clone / "fastreid") == ([differing] if differing else [])


def test_comments_and_line_ends_may_differ(clone):
    for file in source.FINGERPRINTS:
        path = clone / "fastreid" / file
        lines = path.read_text(encoding="utf-8").splitlines()
        path.write_bytes("\r\n".join(["# ours", *lines, "# the end"]).encode())
    edit(clone / "fastreid" / "engine" / "launch.py", "Launch multi-gpu or", "Start several, that is")
    assert source.differing_names(clone / "fastreid") == []


def test_a_fingerprint_sees_code_only(tmp_path):
    def fingerprint(text):
        (tmp_path / "file.py").write_text(text)
        return source.fingerprints(tmp_path / "file.py", ["A.f"]).get("A.f")

    plain = fingerprint("class A:\n def f(self, x=None): return x + 1")
    assert plain == fingerprint('class A:\n """Text."""\n def f(self, x=None):\n  "More"\n  return (x + 1)  # sum')
    bodies = ["return x + 1.0", "return x - 1", "return x", "return x + None", "pass"]
    changed = [fingerprint(f"class A:\n def f(self, x=None): {body}") for body in bodies]
    changed += [fingerprint(f"class A:\n def f(self, {argument}): return x + 1") for argument in ("x=0", "x", "*x")]
    assert len({plain, *changed}) == len(changed) + 1 and None not in changed
    assert fingerprint("def f(self, x=None): return x + 1") is None and fingerprint("class A") is None


def test_missing_fastreid_names_the_command(monkeypatch):
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(ImportError, match="not installed. Run:\n    pip install --no-deps fastreid==1.4.0"):
        source.require_fastreid()


def test_other_version_names_the_command(monkeypatch, tmp_path):
    """A fastreid that is another one altogether, as an old or a future version would be."""
    spec = importlib.machinery.ModuleSpec("fastreid", None, origin=str(tmp_path / "__init__.py"))
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: spec)
    monkeypatch.setattr(source.importlib.metadata, "version", lambda name: "1.3.0")
    with pytest.raises(ImportError, match="pip knows fastreid 1.3.0(.|\n)*pip install --no-deps fastreid==1.4.0"):
        source.require_fastreid()


def test_a_clone_named_fastreid_beside_the_script(tmp_path, monkeypatch):
    (tmp_path / "fastreid" / "fastreid").mkdir(parents=True)
    monkeypatch.setattr(sys, "path", [str(tmp_path)])
    monkeypatch.delitem(sys.modules, "fastreid")
    with pytest.raises(ImportError, match=f'export PYTHONPATH="{tmp_path / "fastreid"}"'):
        source.require_fastreid()
