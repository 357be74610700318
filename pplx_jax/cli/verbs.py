"""The verbs of the command line as data: a new verb is one entry here.

Nothing heavy is imported here, so that `--help` is instant.
"""

import pathlib

from pplx_jax.cli.verb import PathOrName, PathOrUrl, Verb, flag, names, whole_numbers

_PATH = {"type": pathlib.Path}
_DTYPES = ("float32", "bfloat16")
_QUANTIZATIONS = ("int8", "binary", "ubinary", "tanh", "none")
_MODEL = {"required": True, **_PATH, "help": "a model folder, or ORG/NAME[@REVISION] of the Hugging Face hub"}
_OUTPUT = flag("--output", required=True, output=True, **_PATH, help="the folder to write")
_STAGE = flag("--stage", required=True, metavar="STAGE", help="the name of a stage, such as pair")
_VOCABULARY = flag("--vocabulary", **_PATH, help="a vocabulary (default: of the initial model, or of the workdir)")
_TOPOLOGY = flag("--topology", required=True, metavar="SLICE", help="a slice, such as v5e:16x16 or v5p:4x4x8")
_NUM_SLICES = flag("--num_slices", type=int, help="number of slices, connected by the data-centre network")
_OVERFLOW = flag("--overflow", choices=("error", "split", "truncate"), help="what to do with texts past the limit")
_SERVER = flag("--url", metavar="URL", help="the server of the index (default: where the index was built)")
_MESH = flag(
    "--mesh",
    gin_file="gin/meshes/{}.gin",
    metavar="MESH",
    help="single, fsdp, fsdp_tensor, long_context, multislice, or a gin file",
)
_RECIPE = "--gin_file=gin/recipes/quickstart.gin"
_PROCESSES = {"owner": "pplx_jax.parallel.processes:Processes"}
_PROCESS_FLAGS = (
    flag("--coordinator", **_PROCESSES, metavar="HOST:PORT", help="address of process 0, or auto if JAX finds it"),
    flag("--num_processes", **_PROCESSES, type=int, help="number of processes"),
    flag("--process_id", **_PROCESSES, type=int, help="index of this process, from 0"),
    flag("--startup_seconds", **_PROCESSES, type=float, help="how long to wait for the other processes"),
)
_DETERMINISTIC = flag("--deterministic", action="store_true", help="equal bits whatever else is encoded; slower")
_PROMPTS = (
    flag("--query_prompt", metavar="TEXT", help="put before every query (default: the model's prompt, if it has one)"),
    flag("--document_prompt", metavar="TEXT", help="put before every document, in the same way"),
)
GROUPS = {"data": "prepare or inspect training data"}

VERBS = (
    Verb(
        "run",
        "run every stage of a recipe, then merge, evaluate and export",
        "pplx_jax.recipes.recipe:run",
        example=f"{_RECIPE} --workdir=quickstart_run",
        heading="train",
        flags=(
            flag("--until", metavar="STAGE", help="stop after this stage, or after the token files are written (data)"),
            *_PROCESS_FLAGS,
            _MESH,
        ),
        recipe="run",
        resumes=True,
    ),
    Verb(
        "train",
        "train one stage of a recipe",
        "pplx_jax.recipes.recipe:train_stage",
        example=f"{_RECIPE} --workdir=quickstart_run --stage=pair",
        heading="train",
        flags=(_STAGE, *_PROCESS_FLAGS, _MESH),
        recipe="run",
        resumes=True,
    ),
    Verb(
        "experiment",
        "run the recipes of a folder with several seeds, and compare their scores",
        "pplx_jax.recipes.experiment:run_experiment",
        example="--set=gin/experiments/backbone --workdir=experiments --seeds=0,1",
        heading="train",
        flags=(
            flag(
                "--set", dest="experiments", required=True, metavar="FOLDER", help="the folder of the arms' gin files"
            ),
            flag("--seeds", type=whole_numbers, help="values of run.seed"),
            flag("--arms", type=names, help="only these arms, and the first one, which is the baseline"),
        ),
        loads_recipes=True,
        resumes=True,
    ),
    Verb(
        "plan",
        "compile a stage for TPUs without having them: memory, time, fit; or rehearse every host's start",
        "pplx_jax.plan.plan_stage:plan_stage",
        example="--gin_file=gin/recipes/pplx_embed_0p6b.gin --stage=pair --topology=v5e:16x16 --mesh=fsdp",
        heading="train",
        flags=(
            flag("--stage", metavar="STAGE", help="the name of a stage; a rehearsal without it is of all stages"),
            _TOPOLOGY,
            _NUM_SLICES,
            _MESH,
            flag("--rehearse", action="store_true", help="compile nothing: walk every host's start, of all stages"),
            flag("--host", type=int, help="the only host that a rehearsal lists"),
            flag("--picture", output=True, **_PATH, help="an HTML page to write: memory and time by kind"),
        ),
        recipe="run",
        inspects_only=True,
    ),
    Verb(
        "plan-search",
        "what exact search of many vectors needs on TPUs: memory and a bound of the time",
        "pplx_jax.plan.plan_search:plan_search",
        example="--topology=v5e:16x16 --vectors=1000000000",
        heading="embed and search",
        flags=(
            _TOPOLOGY,
            _NUM_SLICES,
            flag("--vectors", type=int, required=True, help="number of INT8 vectors"),
            flag("--dims", type=int, help="dimensions of a vector"),
            flag("--queries", type=int, help="queries of a batch"),
            flag("--k", type=int, help="hits per query"),
        ),
        inspects_only=True,
    ),
    Verb(
        "merge",
        "merge two checkpoints into one (SLERP)",
        "pplx_jax.checkpoints.merge_folders:merge_checkpoints",
        example="run/contextual run/triplet merged --weight=0.5",
        heading="models",
        flags=(
            flag("a", metavar="A", **_PATH, help="a model folder"),
            flag("b", metavar="B", **_PATH, help="a second model folder of the same shapes"),
            flag("output", metavar="OUT", output=True, **_PATH, help="the folder to write"),
            flag("--weight", type=float, help="0 gives A, 1 gives B"),
            flag("--per", choices=("tensor", "whole"), help="one angle per tensor, or one for all weights"),
        ),
    ),
    Verb(
        "average",
        "average several checkpoints of a stage into one",
        "pplx_jax.checkpoints.average_folders:average_checkpoints",
        example="run/pair --latest=4 --output=averaged",
        heading="models",
        flags=(
            flag("models", metavar="CHECKPOINT", nargs="+", **_PATH, help="STAGE/checkpoints/STEP, or a model folder"),
            flag("--latest", type=int, metavar="N", help="the latest N checkpoints of the one stage that is given"),
            _OUTPUT,
        ),
    ),
    Verb(
        "import-hf",
        "convert a Hugging Face folder or a GGUF file to a checkpoint, with a parity report",
        "pplx_jax.export.import_hf:import_hf",
        example="Qwen3-0.6B-Base imported/qwen3_0p6b",
        heading="models",
        flags=(
            flag(
                "source",
                metavar="SRC",
                **_PATH,
                help="a folder of Qwen3, Qwen2.5, Llama or pplx-embed weights, or a .gguf file",
            ),
            flag("output", metavar="DST", output=True, **_PATH, help="the folder to write"),
            flag("--dtype", choices=_DTYPES, help="type of the written weights"),
            flag("--mask_token", metavar="TOKEN", help="token that diffusion masks with (default: as declared)"),
            flag("--separator_token", metavar="TOKEN", help="token between chunks (default: as declared)"),
            flag("--pad_token", metavar="TOKEN", help="token that fills sequences (default: as declared)"),
            flag("--layers", type=int, help="keep only the first layers (default: all)"),
            flag("--no_parity", action="store_true", help="skip the comparison with PyTorch"),
        ),
    ),
    Verb(
        "export-hf",
        "convert a checkpoint to a Hugging Face folder, with a parity report",
        "pplx_jax.export.export_hf:export_hf",
        example="run/merged exported/v1 --kind=v1",
        heading="models",
        flags=(
            flag("model_folder", metavar="SRC", **_PATH, help="a model folder"),
            flag("output", metavar="DST", output=True, **_PATH, help="the folder to write"),
            flag("--kind", choices=("v1", "context_v1"), help="which model it is (default: as trained)"),
            flag("--dtype", choices=_DTYPES, help="type of the written weights"),
            flag("--dims", type=int, help="leading dimensions of its embeddings (default: all)"),
            flag("--onnx", action="store_true", help="also write and check onnx/model.onnx"),
            flag(
                "--spell_special_tokens",
                action="store_true",
                help="a tokenizer.json without special tokens, for texts that contain their names",
            ),
        ),
    ),
    Verb(
        "push-to-hub",
        "upload an exported folder to the Hugging Face hub",
        "pplx_jax.export.push_to_hub:push_to_hub",
        example="exported/v1 org/name",
        heading="models",
        flags=(
            flag("folder", metavar="SRC", **_PATH, help="what export-hf wrote"),
            flag("repository", metavar="ORG/NAME", help="the repository; it is made if there is none"),
            flag("--revision", metavar="BRANCH", help="the branch to commit to (default: main)"),
            flag("--private", action="store_true", help="make a new repository private"),
        ),
    ),
    Verb(
        "embed",
        "embed a file of texts or documents",
        "pplx_jax.retrieval.embed_file:embed_file",
        example="--model=run/merged --input=corpus.jsonl --output=embeddings --quantization=int8",
        heading="embed and search",
        flags=(
            flag("--model", dest="model_path", **_MODEL),
            flag(
                "--input",
                required=True,
                **_PATH,
                help="JSON lines or Parquet: a file, a folder, or a pattern in quotes",
            ),
            _OUTPUT,
            flag("--text_field", metavar="COLUMN", help="the column of the text"),
            flag("--chunks_field", metavar="COLUMN", help="the column of a document's chunks"),
            flag("--quantization", choices=_QUANTIZATIONS, help="form of the embeddings"),
            flag("--bit_order", choices=("big", "little"), help="order of the packed bits of ubinary"),
            flag("--dims", type=int, help="keep only the first N dimensions"),
            flag("--shard_size", type=int, help="input rows per shard (default: by bytes)"),
            flag("--chunk_tokens", type=int, help="cut texts into chunks of N tokens that are encoded together"),
            _OVERFLOW,
            flag("--overlap", type=int, help="tokens that neighbouring windows of --overflow=split share"),
            _DETERMINISTIC,
            *_PROMPTS,
            flag(
                "--shard",
                metavar="I/N",
                help="embed only share I of N, from 0; workers that share the output do the rest",
            ),
            *_PROCESS_FLAGS,
        ),
        resumes=True,
    ),
    Verb(
        "index",
        "build an index from embeddings",
        "pplx_jax.retrieval.build_index:build_index",
        example="--embeddings=embeddings --output=index",
        heading="embed and search",
        flags=(
            flag("--embeddings", required=True, **_PATH, help="the folder that embed wrote"),
            _OUTPUT,
            flag(
                "--engine", choices=("faiss", "numpy", "vespa", "postgres"), help="default: faiss for int8, else numpy"
            ),
            flag("--lists", type=int, help="inverted lists of faiss (default: none under 10 million vectors)"),
            flag(
                "--url", metavar="URL", help="the server: http://HOST:8080 of Vespa, or postgresql://USER@HOST/DATABASE"
            ),
            flag("--table", metavar="NAME", help="the table of postgres (default: pplx_ and the name of --output)"),
            flag("--vespa_config_url", metavar="URL", help="its configuration server, to deploy the application first"),
            flag("--replace", action="store_true", help="replace an index of another model or other settings"),
        ),
    ),
    Verb(
        "search",
        "search an index, for one query or a file of queries",
        "pplx_jax.retrieval.search_index:search_index",
        example="--index=index 'read a file line by line' --k=5",
        heading="embed and search",
        flags=(
            flag("query", nargs="?", metavar="QUERY", help="the text to search for"),
            flag("--queries", **_PATH, help="instead of QUERY: files of id and text, as in embed"),
            flag("--output", output=True, **_PATH, help="with --queries: FILE.trec or FILE.jsonl to write"),
            flag("--index", required=True, **_PATH, help="the folder that index wrote"),
            flag("--model", **_PATH, help="the folder of the model, if it is not where the index says"),
            _DETERMINISTIC,
            flag("--k", type=int, help="number of hits per query"),
            flag(
                "--engine",
                choices=("faiss", "numpy", "jax", "vespa", "postgres"),
                help="default: as the index was built",
            ),
            flag("--candidates", type=int, help="candidates to rank again per hit"),
            flag("--least_candidates", type=int, help="fewest candidates of a query"),
            flag("--probes", type=int, help="inverted lists to read per query (default: a quarter of them)"),
            _SERVER,
            *_PROCESS_FLAGS,
        ),
    ),
    Verb(
        "update",
        "add documents to an index, replace or delete them",
        "pplx_jax.retrieval.update_index:update_index",
        example="--index=index --embeddings=new_vectors --delete=old_ids.txt",
        heading="embed and search",
        flags=(
            flag("--index", required=True, output=True, **_PATH, help="the folder that index wrote"),
            flag("--embeddings", **_PATH, help="the folder that embed wrote; its documents are added or replaced"),
            flag("--delete", **_PATH, help="a file of ids of documents to delete, one a line"),
            _SERVER,
        ),
    ),
    Verb(
        "serve",
        "serve a model over HTTP with the API of OpenAI",
        "pplx_jax.serving.server:serve",
        example="--model=run/merged --port=8080",
        heading="embed and search",
        flags=(
            flag("--model", dest="model_path", **_MODEL),
            flag("--host", metavar="ADDRESS", help="the address to listen on"),
            flag("--port", type=int, help="the port to listen on; 0 takes a free one"),
            flag("--name", metavar="NAME", help="the name of the model for clients (default: the folder's name)"),
            flag("--prompt_name", metavar="NAME", help="the prompt for requests that name none, such as document"),
            flag("--max_batch_tokens", type=int, help="most tokens of concurrent requests to encode together"),
            flag("--max_wait_ms", type=float, help="how long a request waits for others, in milliseconds"),
            flag("--max_inputs", type=int, help="most texts or documents in a request"),
            flag("--index", **_PATH, help="an index of the model, to search on a page at /"),
            flag("--max_chunks", type=int, help="most chunks in a request"),
            flag("--max_document_tokens", type=int, help="most tokens of a text or document"),
            flag("--max_tokens", type=int, help="most tokens in a request"),
            flag("--max_body_bytes", type=int, help="most bytes in a request"),
            flag("--max_queued_tokens", type=int, help="most tokens that wait; more requests get status 429"),
            flag("--max_connections", type=int, help="most open connections; more get status 503"),
            flag("--warm_up_tokens", type=int, help="compile batches of up to N tokens at the start (default: all)"),
            _DETERMINISTIC,
            flag("--stop_seconds", type=int, help="how long running requests may take after a signal to stop"),
        ),
    ),
    Verb(
        "eval",
        "score a model on a benchmark or a BEIR folder",
        "pplx_jax.evaluation.evaluate:evaluate_task",
        example="--model=run/merged --task=beir/scifact --quantization=int8,binary --output=scores",
        heading="evaluate",
        flags=(
            flag(
                "--model",
                type=PathOrName,
                help="a model folder or ORG/NAME[@REVISION], also of other libraries, or bm25",
            ),
            flag(
                "--watch", metavar="STAGE_FOLDER", **_PATH, help="instead of --model: a stage's checkpoints, as saved"
            ),
            flag("--poll_seconds", type=float, help="with --watch: how often to look for new checkpoints"),
            flag(
                "--task",
                type=PathOrName,
                help="a benchmark, a BEIR folder, a folder or pattern of those, or MODULE:NAME",
            ),
            flag("--tasks", type=names, help="only these tasks of the benchmark; * stands for any letters"),
            flag(
                "--quantization",
                type=names,
                help=f"one or several of {', '.join(_QUANTIZATIONS)} (default: int8 if the model has it)",
            ),
            flag("--dims", type=whole_numbers, help="keep only the first N dimensions; one or several numbers"),
            flag(
                "--context",
                nargs="?",
                const="with",
                choices=("with", "without", "both"),
                help="encode passages together with their neighbours (late chunking), without them, or both",
            ),
            flag("--max_length", type=int, help="tokens of a text that are read, if fewer than the model can"),
            _DETERMINISTIC,
            flag("--truncate", action="store_true", help="cut texts past the limit"),
            _OVERFLOW,
            *_PROMPTS,
            flag("--prompts", **_PATH, help="JSON: TASK -> {query, document}, prompts for single tasks"),
            flag("--data", **_PATH, help="a folder with the benchmark's files, instead of the hub"),
            flag("--output", output=True, **_PATH, help="the results folder to write or to continue"),
            flag("--compare", **_PATH, help="another results folder: differences, intervals, p-values"),
            flag("--run_file", output=True, **_PATH, help="a file to write the ranking to, in TREC's format"),
            flag("--split", metavar="NAME", help="of a BEIR folder: read qrels/NAME.tsv (default: test)"),
            flag(
                "--own_document",
                choices=("keep", "drop"),
                help="rank the document with the id of a query for this query, or not (default: see docs/evaluate.md)",
            ),
            *_PROCESS_FLAGS,
        ),
        resumes=True,
    ),
    Verb(
        "report",
        "rank the trials of a sweep by a metric",
        "pplx_jax.recipes.sweep_report:report_trials",
        example="sweeps/merge --metric=merged.int8.ndcg@10",
        heading="evaluate",
        flags=(
            flag("folders", metavar="DIR", nargs="+", **_PATH, help="a run, or a folder of runs"),
            flag("--metric", metavar="NAME", help="such as pair.loss (default: int8 nDCG@10 of the last stage)"),
            flag("--best", choices=("highest", "lowest"), help="default: lowest for losses and times, else highest"),
            flag("--output", output=True, **_PATH, help="the page to write (default: trials.html in the first DIR)"),
        ),
    ),
    Verb(
        "data cache",
        "tokenize the sources of a recipe, on any Beam runner",
        "pplx_jax.recipes.data_verbs:cache_corpus",
        example=f"{_RECIPE} --workdir=quickstart_run --output=gs://bucket/tokens --runner=DataflowRunner",
        heading="data",
        flags=(
            flag("--output", output=True, type=PathOrUrl, help="where to write (default: WORKDIR/data/tokens)"),
            _VOCABULARY,
            flag("--runner", metavar="RUNNER", help="runner of Beam"),
            flag("--beam_options", metavar="OPTIONS", help="further options of Beam, in one string"),
            flag("--seqio_records", action="store_true", help="also keep SeqIO's cache of TFRecords"),
        ),
        recipe="run",
    ),
    Verb(
        "data report",
        "count and check training data: lengths, languages, duplicates, fill, overlap",
        "pplx_jax.recipes.data_verbs:report_corpus",
        example="--input=pairs.jsonl",
        heading="data",
        flags=(
            flag("--input", type=PathOrUrl, help="instead of a recipe: JSON lines or Parquet, a file or a pattern"),
            flag("--text_field", metavar="COLUMN", help="the column of the text in --input"),
            flag("--output", output=True, **_PATH, help="the folder of the report (default: WORKDIR/data/report)"),
            _VOCABULARY,
            flag("--examples", type=int, help="examples to read of each source"),
            flag("--samples", type=int, help="examples to show of each source, after every step"),
        ),
        recipe="run",
        recipe_unless="input",
    ),
    Verb(
        "mine",
        "mine hard negatives: pairs to triplets",
        "pplx_jax.mining.mine:mine_file",
        example="--model=run/pair --pairs=run/data/tokens/pair --output=triplets",
        heading="data",
        flags=(
            flag("--model", **_MODEL),
            flag("--pairs", required=True, **_PATH, help="token files of the pair stage, of one source or of all"),
            _OUTPUT,
            flag("--documents", nargs="+", **_PATH, help="token files of any stage whose texts are ranked too"),
            flag(
                "--shard",
                metavar="I/N",
                help="do only share I of N, from 0; a last call without it writes the triplets",
            ),
            *_PROCESS_FLAGS,
        ),
        bindings=("mine_file.mining = @Mining()",),
        resumes=True,
    ),
)
