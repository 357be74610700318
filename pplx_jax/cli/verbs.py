"""The verbs of the command line as data: adding one is an entry here and a line in `configuration.table`.

Nothing heavy is imported here, so that `--help` is instant.
"""

import dataclasses
import pathlib
from typing import Any


class PathOrName(str):
    """A path, or the name of something that is no file ("bm25")."""


@dataclasses.dataclass(frozen=True)
class Flag:
    """One argument of argparse; what the command line leaves out is left to gin and to Python's default."""

    names: tuple[str, ...]
    options: dict[str, Any]
    files: str | None = None  # what it names is such a gin file, read after the recipe

    @property
    def parameter(self) -> str:
        """The name that argparse gives it."""
        return self.options.get("dest", self.names[0].lstrip("-"))


def flag(*names: str, files: str | None = None, **options: Any) -> Flag:
    """A Flag, written as a call of `add_argument`."""
    return Flag(names, options, files)


@dataclasses.dataclass(frozen=True)
class Verb:
    """One command.

    Attributes:
        name: as typed; a verb of a group is two words, the group (one of `GROUPS`) first.
        help: one line.
        function: the function that does it, a verb of `configuration.Table`; flags are its parameters.
        flags: beside the shared ones.
        outputs: the parameters that name what it writes.
        recipe: the function whose bindings it takes, where that is a recipe it cannot go without.
        goes_on: whether the same command goes on from where it was cut off, or starts over.
        writes: whether it runs the recipe; one that only looks needs no workdir, nor what a recipe leaves to its user.
        bindings: gin statements that hold where the user binds nothing else, so that what they refer to may be bound.
    """

    name: str
    help: str
    function: str
    flags: tuple[Flag, ...] = ()
    outputs: tuple[str, ...] = ()
    recipe: str | None = None
    writes: bool = True
    goes_on: bool = False
    bindings: tuple[str, ...] = ()


def names(text: str) -> list[str]:
    """A flag's value of several names with commas between."""
    return [name for name in text.split(",") if name]


def whole_numbers(text: str) -> list[int]:
    """A flag's value of several numbers with commas between."""
    return [int(size) for size in names(text)]


_PATH = {"type": pathlib.Path}
_PROCESSES = (
    flag("--coordinator", help="HOST:PORT of process 0 of several, or auto where JAX finds the others by itself"),
    flag("--num_processes", type=int, help="how many there are"),
    flag("--process_id", type=int, help="which one this is, from 0"),
    flag("--startup_seconds", type=float, help="how long to wait for the others (default 300)"),
)
_QUANTIZATIONS = ("int8", "binary", "ubinary", "tanh", "none")
_MESH = flag(
    "--mesh", files="gin/meshes/{}.gin", help="single, fsdp, fsdp_tensor, long_context, multislice, or a gin file"
)

GROUPS = {"data": "what a recipe reads: prepare it, look at it"}

VERBS = (
    Verb(
        "run",
        "every stage of a recipe in order, then merge, evaluate, export",
        "run",
        flags=(
            flag("--until", metavar="STAGE", help="stop after this stage, or with data before the first"),
            *_PROCESSES,
            _MESH,
        ),
        recipe="run",
        goes_on=True,
    ),
    Verb(
        "train",
        "one stage of a recipe",
        "train_stage",
        flags=(flag("--stage", required=True, help="its name, such as pair"), *_PROCESSES, _MESH),
        recipe="run",
        goes_on=True,
    ),
    Verb(
        "plan",
        "what a stage would need and take on TPUs that are not here",
        "plan_stage",
        flags=(
            flag("--stage", required=True, help="its name, such as pair"),
            flag("--topology", required=True, help="a slice, such as v5e:16x16, v5p:4x4x8 or v6e:16x16"),
            flag("--num_slices", type=int, help="slices over the data-centre network (default 1)"),
            _MESH,
            flag("--picture", **_PATH, help="an HTML page to write: memory and time by kind"),
        ),
        outputs=("picture",),
        recipe="run",
        writes=False,
    ),
    Verb(
        "merge",
        "two checkpoints into one",
        "merge_checkpoints",
        flags=(
            flag("a", metavar="A", **_PATH, help="a model folder"),
            flag("b", metavar="B", **_PATH, help="another of the same shape"),
            flag("output", metavar="OUT", **_PATH, help="the folder to write"),
            flag("--weight", type=float, help="0 gives A, 1 gives B (default 0.5)"),
            flag("--per", choices=("tensor", "whole"), help="an angle for each tensor, or one for all"),
        ),
        outputs=("output",),
    ),
    Verb(
        "import-hf",
        "a Hugging Face folder to a checkpoint, with a parity report",
        "import_hf",
        flags=(
            flag("source", metavar="SRC", **_PATH, help="a folder of Qwen3, Qwen3-Embedding or pplx-embed weights"),
            flag("output", metavar="DST", **_PATH, help="the folder to write"),
            flag("--dtype", choices=("float32", "bfloat16"), help="of the weights kept (default float32)"),
            flag("--mask_token", help="name of the token that diffusion masks with (default: as declared, or Qwen's)"),
            flag("--separator_token", help="name of the token between chunks (default: the same)"),
            flag("--no_parity", action="store_true", help="skip the comparison with PyTorch"),
        ),
        outputs=("output",),
    ),
    Verb(
        "export-hf",
        "a checkpoint to a Hugging Face folder, with a parity report",
        "export_hf",
        flags=(
            flag("model_folder", metavar="SRC", **_PATH, help="a model folder"),
            flag("output", metavar="DST", **_PATH, help="the folder to write"),
            flag("--kind", choices=("v1", "context_v1"), help="which model it is (default: as trained)"),
            flag("--dtype", choices=("float32", "bfloat16"), help="of the weights (default float32)"),
            flag("--onnx", action="store_true", help="also write and check onnx/model.onnx"),
        ),
        outputs=("output",),
    ),
    Verb(
        "embed",
        "a file of texts or documents to vectors",
        "embed_file",
        flags=(
            flag("--model", dest="model_path", required=True, **_PATH, help="a model folder"),
            flag("--input", required=True, **_PATH, help="JSON lines or Parquet"),
            flag("--output", required=True, **_PATH, help="the folder to write"),
            flag("--text_field", help="column of the text (default text)"),
            flag("--chunks_field", help="column of a document's chunks (default chunks)"),
            flag("--quantization", choices=_QUANTIZATIONS, help="default int8"),
            flag("--bit_order", choices=("big", "little"), help="of ubinary (default big)"),
            flag("--dims", type=int, help="only the first so many dimensions"),
            flag("--shard_size", type=int, help="rows a shard"),
            flag("--chunk_tokens", type=int, help="cut texts in chunks of so many tokens, encoded together"),
            flag("--overflow", choices=("error", "split", "truncate"), help="texts past the limit (default error)"),
            flag("--overlap", type=int, help="tokens that the windows of --overflow split share"),
        ),
        outputs=("output",),
        goes_on=True,
    ),
    Verb(
        "serve",
        "a model behind HTTP in OpenAI's manner",
        "serve",
        flags=(
            flag("--model", dest="model_path", required=True, **_PATH, help="a model folder"),
            flag("--host", help="address to listen on (default 127.0.0.1)"),
            flag("--port", type=int, help="0 takes a free one (default 8080)"),
            flag("--name", help="what clients call the model (default: the folder's name)"),
            flag("--max_batch_tokens", type=int, help="tokens of concurrent requests encoded together"),
            flag("--max_wait_ms", type=float, help="how long a request waits for others (default 5)"),
            flag("--max_inputs", type=int, help="texts or documents of one request (default 2048)"),
            flag("--max_body_bytes", type=int, help="bytes of one request (default 16 MiB)"),
        ),
    ),
    Verb(
        "index",
        "vectors to an index",
        "build_index",
        flags=(
            flag("--embeddings", required=True, **_PATH, help="what embed wrote"),
            flag("--output", required=True, **_PATH, help="the folder to write"),
            flag("--engine", choices=("faiss", "numpy", "vespa"), help="default faiss for int8, numpy for others"),
            flag("--lists", type=int, help="inverted lists of faiss (default: 0, none, under 10 million vectors)"),
            flag("--vespa_url", help="its container, such as http://localhost:8080"),
            flag("--vespa_config_url", help="its configuration server, to deploy the application first"),
        ),
        outputs=("output",),
    ),
    Verb(
        "search",
        "ranked hits of a query",
        "search_index",
        flags=(
            flag("query", nargs="?", help="the text to search for"),
            flag("--queries", **_PATH, help="instead, JSON lines or Parquet of id and text"),
            flag("--output", **_PATH, help="of --queries: FILE.trec or FILE.jsonl to write"),
            flag("--index", required=True, **_PATH, help="what index wrote"),
            flag("--k", type=int, help="how many hits (default 10)"),
            flag("--engine", choices=("faiss", "numpy", "jax", "vespa"), help="default: as the index was built"),
            flag(
                "--candidates", type=int, help="ranked again for each hit wanted (default 40, and 1000 in all at least)"
            ),
            flag("--probes", type=int, help="inverted lists that a query reads (default: a quarter)"),
            flag("--vespa_url", help="where it is, if not where it was when built"),
        ),
        outputs=("output",),
    ),
    Verb(
        "eval",
        "a model on a benchmark or a BEIR folder",
        "evaluate_task",
        flags=(
            flag("--model", required=True, type=PathOrName, help="a model folder, another's, or bm25"),
            flag("--task", type=PathOrName, help="a benchmark, a BEIR folder, a folder of those, or MODULE:NAME"),
            flag("--tasks", type=names, help="only these tasks of it, with commas between"),
            flag("--quantization", type=names, help="int8, binary, ubinary, tanh, none; several with commas between"),
            flag("--dims", type=whole_numbers, help="only the first so many dimensions; several with commas between"),
            flag(
                "--context",
                nargs="?",
                const="with",
                choices=("with", "without", "both"),
                help="encode passages together with their neighbours (late chunking), or both ways",
            ),
            flag("--truncate", action="store_true", help="cut texts past the limit"),
            flag("--query_prompt", help="before every query, of models trained with one"),
            flag("--document_prompt", help="before every document"),
            flag("--data", **_PATH, help="a folder of the benchmark's files, in place of the hub"),
            flag("--output", **_PATH, help="the results folder to write, or to go on with"),
            flag("--compare", **_PATH, help="another results folder: differences, intervals, p"),
            flag("--run_file", **_PATH, help="where to write the ranking in TREC's format"),
        ),
        outputs=("output", "run_file"),
        goes_on=True,
    ),
    Verb(
        "data cache",
        "token files of a recipe's sources, on any Beam runner",
        "cache_corpus",
        flags=(
            flag("--output", help="a folder or URL that all workers reach (default WORKDIR/data/tokens)"),
            flag("--vocabulary", **_PATH, help="a vocabulary (default: that of the initial model, or the workdir's)"),
            flag("--runner", help="of Beam (default DirectRunner)"),
            flag("--beam_options", help="further options of Beam, in one string"),
            flag("--seqio_records", action="store_true", help="keep SeqIO's cache of TFRecords too"),
        ),
        outputs=("output",),
        recipe="run",
    ),
    Verb(
        "data report",
        "counts, lengths, languages, duplicates, fill and overlap of what a recipe reads",
        "report_corpus",
        flags=(
            flag("--output", **_PATH, help="the folder of report.html, .txt and .json (default WORKDIR/data/report)"),
            flag("--vocabulary", **_PATH, help="a vocabulary (default: that of the initial model, or the workdir's)"),
            flag("--examples", type=int, help="looked at of each source (default 100000)"),
            flag("--samples", type=int, help="shown of each source after every step (default 3)"),
        ),
        outputs=("output",),
        recipe="run",
    ),
    Verb(
        "mine",
        "pairs to triplets with hard negatives",
        "mine_file",
        flags=(
            flag("--model", required=True, **_PATH, help="a model folder"),
            flag("--pairs", required=True, **_PATH, help="token files of the pair stage, of one source or of all"),
            flag("--output", required=True, **_PATH, help="the folder to write"),
            flag("--documents", nargs="+", **_PATH, help="token files of any stage: their texts are ranked too"),
            flag("--shard", type=int, help="do only this share of the work, counted from 0, and write no triplets yet"),
            flag("--shards", type=int, help="how many shares there are; a last call without both puts them together"),
        ),
        outputs=("output",),
        bindings=("mine_file.mining = @Mining()",),
        goes_on=True,
    ),
    Verb(
        "report",
        "the trials of a sweep, ranked by a metric",
        "report_trials",
        flags=(
            flag("folders", metavar="DIR", nargs="+", **_PATH, help="a run, or a folder of runs"),
            flag("--metric", help="such as merged.int8.ndcg@10 or pair.loss (default: int8 nDCG@10 of the last stage)"),
            flag("--best", choices=("highest", "lowest"), help="default: lowest of losses and times, else highest"),
            flag("--output", **_PATH, help="the page to write (default: trials.html in the first DIR)"),
        ),
        outputs=("output",),
    ),
)
