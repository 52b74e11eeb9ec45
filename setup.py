from pathlib import Path

from setuptools import find_packages, setup

ROOT = Path(__file__).parent
VERSION = next(
    line.split('"')[1]
    for line in (ROOT / "fastreid_ice" / "__init__.py").read_text().splitlines()
    if line.startswith("__version__")
)

setup(
    name="fastreid-ice",
    version=VERSION,
    description="ICE: unsupervised person re-identification as a plugin for fastreid",
    long_description=(ROOT / "README.md").read_text(),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.9",
    packages=find_packages(include=["fastreid_ice", "fastreid_ice.*"]),
    # fastreid 1.4.0 itself is not listed: it pins torch 1.13, and no installer could resolve both.
    # Install it behind these with: pip install --no-deps fastreid==1.4.0
    install_requires=[
        "torch>=2.1",
        "torchvision>=0.16",
        "numpy",
        "scipy",
        "scikit-learn",
        "numba",
        "pillow",
        "matplotlib",
        "tqdm",
        # what fastreid needs
        "yacs",
        "tabulate",
        "termcolor",
        "tensorboard",
        "gdown",
    ],
    extras_require={
        # exactly one of the two: both provide the module faiss
        "cpu": ["faiss-cpu"],
        "gpu": ["faiss-gpu"],
        # compiles fastreid's evaluation: seconds instead of minutes on large galleries
        "fast-eval": ["cython", "setuptools"],
        "test": ["pytest", "hypothesis", "ruff", "mypy"],
    },
)
