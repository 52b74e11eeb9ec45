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
    # configs/ travels in the wheel as fastreid_ice/configs
    packages=[*find_packages(include=["fastreid_ice", "fastreid_ice.*"]), "fastreid_ice.configs"],
    package_dir={"fastreid_ice.configs": "configs"},
    package_data={
        "fastreid_ice.configs": ["ICE/*.yml", "ICE/recipes/*.yml", "ICE/grids/*.yml"],
        "fastreid_ice.report": ["*.yml", "*.css"],
    },
    entry_points={"console_scripts": ["fastreid-ice = fastreid_ice.cli.main:main"]},
    # fastreid 1.4.0 itself is not listed: it pins torch 1.13, and no installer could resolve both.
    # Install it behind these with: pip install --no-deps fastreid==1.4.0
    install_requires=[
        "torch>=2.3",  # with an older one numpy 2 is "not available"
        "torchvision>=0.18",
        "numpy",
        "scipy",
        "scikit-learn",
        "numba",
        "pillow",
        "matplotlib",
        "tqdm",
        # what fastreid needs
        "yacs",
        "pyyaml",
        "tabulate",
        "termcolor",
        "tensorboard",
        "gdown",
    ],
    extras_require={
        # exactly one of the two: both provide the module faiss
        "cpu": ["faiss-cpu"],
        # faiss-gpu 1.7.2 would be taken where nothing newer fits: it cannot be imported beside numpy 2
        "gpu": ["faiss-gpu>=1.14.3; python_version >= '3.10'", "faiss-gpu-cu12; python_version < '3.10'"],
        # what the formats of tools/export_model.py need beside torch
        "export": ["onnx", "onnxscript", "onnxruntime", "safetensors"],
        "test": ["pytest", "pytest-xdist", "hypothesis", "ruff", "mypy", "types-PyYAML"],
    },
)
