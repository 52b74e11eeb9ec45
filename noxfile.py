"""The promised versions: the suite on each Python, with the oldest and the newest torch that it takes.

nox                       # all; several GB are downloaded for each
nox -s "tests(python='3.9', torch='2.3.0')"
nox -s "tests(python='3.11', torch='newest')" -- tests/test_losses.py
"""

import nox

# Oldest torch with wheels for a Python (torch 2.3 is the oldest that is promised), and its torchvision.
OLDEST = {
    "3.9": ("2.3.0", "0.18.0"),
    "3.10": ("2.3.0", "0.18.0"),
    "3.11": ("2.3.0", "0.18.0"),
    "3.12": ("2.3.0", "0.18.0"),
    "3.13": ("2.6.0", "0.21.0"),
}
NEWEST = "newest"

nox.options.default_venv_backend = "uv|venv"  # pip took over half an hour to resolve torch 2.3 with the extras


@nox.session
@nox.parametrize(
    ("python", "torch"), [(python, torch) for python, (oldest, _) in OLDEST.items() for torch in (oldest, NEWEST)]
)
def tests(session: nox.Session, torch: str) -> None:
    """Install as the README says, and run the suite."""
    pins = []
    if torch != NEWEST:
        pins = [f"torch=={torch}", f"torchvision=={OLDEST[session.python][1]}"]
    # uv would let [tool.uv] of pyproject.toml override the pins.
    session.install(*pins, "-e", ".[cpu,export,test]", env={"UV_NO_CONFIG": "1"})
    session.install("--no-deps", "fastreid==1.4.0")
    two_processes = ["--numprocesses", "2", "--dist", "loadfile", "--no-loadscope-reorder"]
    session.run("python", "-m", "pytest", *two_processes, *session.posargs)
