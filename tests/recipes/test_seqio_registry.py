"""Registers the sources of a recipe with SeqIO and TFDS, and trains a recipe from registered tasks."""

import json
import os
import subprocess
import sys

import gin
import pytest
import seqio
import tensorflow as tf
import tensorflow_datasets as tfds
from helpers import tiny

from pplx_jax.cli import main as cli
from pplx_jax.core.errors import BadInput
from pplx_jax.data.io.bad_rows import BadRows
from pplx_jax.data.sources.seqio_corpus import SeqioCorpus
from pplx_jax.data.sources.source import Source
from pplx_jax.data.sources.tfds_builder import register_builder
from pplx_jax.data.tokens.lengths import Lengths
from pplx_jax.data.tokens.open_tables import open_tables
from pplx_jax.recipes.seqio_registry import register_recipe

pytestmark = pytest.mark.slow

PAIRS = {
    "short": [{"query": f"read {n}", "positive": f"file {n}"} for n in range(6)],
    "long": [{"query": f"open {n}", "positive": f"the table of vector {n}"} for n in range(12)],
}
DOCUMENT = {"document_id": "d", "chunks": ["read it", "close it"], "queries": [{"text": "close", "chunk": 1}]}
RECIPE = """
run.corpus = @SourceCorpus()
SourceCorpus.sources = [@short/Source(), @long/Source(), @documents/Source()]
SourceCorpus.evaluation = '{folder}/sets/one'
Source.root = '{folder}'
short/Source.name = 'short'
short/Source.kind = 'pair'
short/Source.path = 'short.jsonl'
long/Source.name = 'long'
long/Source.kind = 'pair'
long/Source.path = 'long.jsonl'
documents/Source.name = 'documents'
documents/Source.kind = 'contextual'
documents/Source.path = 'documents.jsonl'
"""


def write(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    folder = tmp_path_factory.mktemp("registry")
    tiny.tiny_vocabulary(folder)
    for name, rows in {**PAIRS, "documents": [DOCUMENT]}.items():
        write(folder / f"{name}.jsonl", rows)
    write(folder / "sets" / "one" / "corpus.jsonl", [{"_id": "d", "text": "a passage"}])
    write(folder / "sets" / "one" / "queries.jsonl", [{"_id": "q", "text": "which"}])
    (folder / "sets" / "one" / "qrels.tsv").write_text("q\td\t1\n")
    (folder / "recipe.gin").write_text("include 'gin/recipes/quickstart_scratch.gin'\n" + RECIPE.format(folder=folder))
    return folder


def register(folder, *params):
    return register_recipe("lab", [str(folder / "recipe.gin")], params, vocabulary=folder)


def texts(dataset, feature, vocabulary):
    return [vocabulary.decode(example[feature].numpy().tolist()) for example in dataset]


def test_tasks_and_mixtures_are_registered_with_seqio(folder):
    names = register(folder, "pair/Training.data=@Mixture()", "Mixture.weights={'short': 3.0, 'long': 1.0}")
    assert names == ["lab.pair", "lab.contextual"]
    mixture = seqio.get_mixture_or_task("lab.pair")
    assert {task.name: mixture.get_rate(task) for task in mixture.tasks} == {
        "lab.pair.short": 0.75,
        "lab.pair.long": 0.25,
    }
    task = seqio.get_mixture_or_task("lab.pair.short")
    vocabulary = task.output_features["query"].vocabulary
    dataset = task.get_dataset(split="train", shuffle=False)
    assert texts(dataset, "query", vocabulary) == [row["query"] for row in PAIRS["short"]]
    mixed = mixture.get_dataset(
        sequence_length={"query": 8, "document": 8}, split="train", shuffle=False, seed=0, num_epochs=1
    )
    assert {"read 0", "open 0"} <= set(texts(mixed, "query", vocabulary))
    (record,) = seqio.get_mixture_or_task("lab.contextual").get_dataset(
        None, split="train", shuffle=False, num_epochs=1
    )
    assert [vocabulary.decode(ids) for ids in record["chunks"].to_list()] == DOCUMENT["chunks"]


def test_without_weights_the_rates_are_numbers_of_examples_and_a_curriculum_has_parts(folder):
    register(folder)
    mixture = seqio.get_mixture_or_task("lab.pair")
    assert {task.name: mixture.get_rate(task) for task in mixture.tasks} == {"lab.pair.short": 6, "lab.pair.long": 12}
    names = register(
        folder,
        "pair/Training.data=@Curriculum()",
        "Curriculum.mixtures=[@a/Mixture(), @b/Mixture()]",
        "Curriculum.steps=(3,)",
        "a/Mixture.weights={'short': 1.0}",
        "b/Mixture.weights={'long': 1.0}",
    )
    assert names == ["lab.pair.1", "lab.pair.2", "lab.pair", "lab.contextual"]
    tasks = {name: [task.name for task in seqio.get_mixture_or_task(name).tasks] for name in names[:3]}
    assert tasks == {"lab.pair.1": ["lab.pair.short"], "lab.pair.2": ["lab.pair.long"], "lab.pair": ["lab.pair.long"]}


def test_the_prompts_of_a_recipe_are_in_its_tasks(folder):
    register(folder, "run.prompts={'query': 'ask: '}")
    task = seqio.get_mixture_or_task("lab.pair.short")
    found = texts(task.get_dataset(split="train", shuffle=False), "query", task.output_features["query"].vocabulary)
    assert found == ["ask: " + row["query"] for row in PAIRS["short"]]
    register(folder)


def test_tfds_prepares_the_declared_sources_once(folder, tmp_path):
    register(folder)
    prepared = tfds.load("lab/pair", data_dir=tmp_path, split="train", shuffle_files=False)
    rows = {
        (row["query"].decode(), row["positive"].decode(), row["source"].decode()) for row in tfds.as_numpy(prepared)
    }
    assert rows == {(row["query"], row["positive"], name) for name, of in PAIRS.items() for row in of}
    (document,) = tfds.as_numpy(tfds.load("lab/contextual", data_dir=tmp_path, split="train"))
    assert document["queries"]["chunk"].tolist() == [1] and len(document["chunks"]) == 2
    (folder / "short.jsonl").rename(folder / "away")
    try:  # read from what was prepared
        assert tfds.load("lab/pair", data_dir=tmp_path, split="train").cardinality() == 18
    finally:
        (folder / "away").rename(folder / "short.jsonl")
    source = Source("again", "pair", str(tmp_path / "lab" / "pair" / "1.0.0"), format="tfds")
    assert sum(1 for shard in source.shards() for _ in source.examples(shard, _bad())) == 18
    with pytest.raises(BadInput, match="lab/text: the recipe declares no source of this kind"):
        tfds.load("lab/text", data_dir=tmp_path)


def test_tfds_keeps_teacher_scores(folder, tmp_path):
    rows = [{"query": f"q {n}", "positive": "p", "negatives": ["a", "b"], "scores": [1.5, n, -2.0]} for n in range(3)]
    write(tmp_path / "taught.jsonl", rows)
    fields = {"kind": "triplet", "path": str(tmp_path / "taught.jsonl"), "negatives": 2}
    sources = [Source("taught", columns={"scores": "scores"}, **fields), Source("plain", **fields)]
    register_builder("taught_lab", sources)
    prepared = tfds.as_numpy(tfds.load("taught_lab/triplet", data_dir=tmp_path, split="train"))
    found = {(row["source"].decode(), row["query"].decode()): row["scores"].tolist() for row in prepared}
    assert found[("taught", "q 2")] == [1.5, 2.0, -2.0] and found[("plain", "q 2")] == [] and len(found) == 6


def _bad():
    return BadRows("again")


def test_bindings_of_the_caller_stay(folder):
    gin.clear_config()
    gin.bind_parameter("mine/gin.macro.value", 3)
    before = gin.config_str()
    register(folder)
    assert gin.config_str() == before
    gin.clear_config()


def test_one_import_registers_the_published_recipe(folder):
    """In another process, without a file in place: names only."""
    code = (
        "import seqio, tensorflow_datasets as tfds\n"
        "import pplx_jax.recipes.pplx_embed_tasks as tasks\n"
        "mixture = seqio.get_mixture_or_task('pplx_embed.pair')\n"
        "print(len(tasks.MIXTURES), mixture.tasks[0].name, tfds.builder_cls('pplx_embed').name)\n"
        "print(round(sum(mixture.get_rate(task) for task in mixture.tasks), 6))\n"
    )
    environment = os.environ | {"JAX_PLATFORMS": "cpu", "PPLX_DATA_ROOT": str(folder)}
    done = subprocess.run([sys.executable, "-c", code], env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.split() == ["7", "pplx_embed.pair.code", "pplx_embed", "1.0"]


def add_foreign_tasks(folder, name="foreign"):
    """Two tasks of another project, with a vocabulary of its own, and their mixture."""
    rows = {part: [{"inputs": f"{part} {n}", "targets": f"answer {n}"} for n in range(5)] for part in ("a", "b")}
    for part, content in rows.items():
        task = f"{name}_{part}"
        if task in seqio.TaskRegistry.names():
            continue
        (folder / f"{task}.tsv").write_text("".join("\t".join(row.values()) + "\n" for row in content))

        def parse(dataset):
            def fields(line):
                inputs, targets = tf.unstack(tf.strings.split(line, "\t"), 2)
                return {"inputs": inputs, "targets": targets}

            return dataset.map(fields)

        seqio.TaskRegistry.add(
            task,
            source=seqio.TextLineDataSource({"train": str(folder / f"{task}.tsv")}),
            preprocessors=[parse, seqio.preprocessors.tokenize, seqio.CacheDatasetPlaceholder()],
            output_features={
                key: seqio.Feature(seqio.ByteVocabulary(), add_eos=False) for key in ("inputs", "targets")
            },
        )
    if name not in seqio.MixtureRegistry.names():
        seqio.MixtureRegistry.add(name, [(f"{name}_a", 3.0), (f"{name}_b", 1.0)])
    return rows


def corpus_of(folder, **fields):
    columns = {"query": "inputs", "positive": "targets"}
    return SeqioCorpus({"pair": "foreign"}, str(folder / "sets" / "one"), columns=columns, **fields)


def test_a_recipe_trains_from_a_registered_mixture(folder, tmp_path):
    rows = add_foreign_tasks(folder)
    vocabulary = tiny.tiny_vocabulary(tmp_path)
    lengths = Lengths(text=16, query=16, document=16, chunk=8, chunks=2)
    corpus_of(folder).tokenize(tmp_path, vocabulary, tmp_path / "tokens", lengths)
    tables = open_tables(tmp_path / "tokens" / "pair", kind="pair", vocabulary=vocabulary)
    assert list(tables) == ["foreign.foreign_a", "foreign.foreign_b"]
    for part, content in rows.items():
        (table,) = tables[f"foreign.foreign_{part}"]
        assert table.manifest["weight"] == {"a": 3.0, "b": 1.0}[part]
        found = [(table["query"][row].tolist(), table["document"][row].tolist()) for row in range(table.count)]
        assert found == [tuple(vocabulary.encode(row[name]) for name in ("inputs", "targets")) for row in content]


def test_the_verb_builds_and_tokenises_from_seqio(folder, tmp_path, capsys):
    add_foreign_tasks(folder)
    recipe = tmp_path / "recipe.gin"
    recipe.write_text(
        "include 'gin/recipes/quickstart_scratch.gin'\n"
        "run.corpus = @SeqioCorpus()\n"
        "run.stages = [@pair/Training()]\n"
        "SeqioCorpus.tasks = {'pair': 'foreign'}\n"
        "SeqioCorpus.columns = {'query': 'inputs', 'positive': 'targets'}\n"
        f"SeqioCorpus.evaluation = '{folder}/sets/one'\n"
        "VOCABULARY = 328\n"
    )
    run = ["run", f"--gin_file={recipe}", f"--workdir={tmp_path / 'run'}", "--until=data", "--json"]
    assert cli.main(run) == cli.DONE
    printed = json.loads(capsys.readouterr().out)
    assert printed["examples"] == {"pair": {"foreign.foreign_a": 5, "foreign.foreign_b": 5}}
    for params, message in (
        (("SeqioCorpus.tasks={'pair': 'nothing'}",), "SeqIO has no Task or Mixture 'nothing'"),
        (("SeqioCorpus.tasks={'triples': 'foreign'}",), "triples; give a task for any of text, pair"),
        (("SeqioCorpus.modules=['no_such_module']",), "no_such_module cannot be imported"),
        (("SeqioCorpus.split='dev'",), "no split 'dev'; the task has train"),
    ):
        flags = [f"--gin_param={param}" for param in params]
        assert cli.main([*run[:2], f"--workdir={tmp_path / 'other'}", "--until=data", *flags]) == cli.BAD_INPUT
        assert message in capsys.readouterr().err
    add_foreign_tasks(folder, "broken")
    (folder / "broken_b.tsv").write_text("one\ttwo\nno tab\n")
    flags = ["--gin_param=SeqioCorpus.tasks={'pair': 'broken'}", f"--workdir={tmp_path / 'other'}", "--until=data"]
    assert cli.main([*run[:2], *flags]) == cli.BAD_INPUT
    *_, shown = capsys.readouterr().err.splitlines()
    assert shown.startswith("pplx-jax: error: broken_b train[0/1]:2: the task fails here (")


def test_a_cached_task_is_read_as_it_is(folder, tmp_path):
    """The cache differs from the source, which shows where the rows are from."""
    add_foreign_tasks(folder)
    task = seqio.get_mixture_or_task("foreign_a")
    cache = tmp_path / "cache" / seqio.get_task_dir_from_name(task.name)
    cache.mkdir(parents=True)
    ids = seqio.ByteVocabulary().encode
    for shard in range(2):
        with tf.io.TFRecordWriter(
            f"{seqio.get_cached_tfrecord_prefix(str(cache), 'train')}-0000{shard}-of-00002"
        ) as file:
            content = {"inputs": ids(f"cached {shard}"), "targets": ids("of it")}
            features = {
                name: tf.train.Feature(int64_list=tf.train.Int64List(value=value)) for name, value in content.items()
            }
            file.write(tf.train.Example(features=tf.train.Features(feature=features)).SerializeToString())
    described = {name: {"shape": [None], "dtype": "int32"} for name in ("inputs", "targets")}
    info = {"num_shards": 2, "features": described, "seqio_version": "0.0.20"}
    (cache / "info.train.json").write_text(json.dumps(info))
    (cache / "stats.train.json").write_text(json.dumps({"examples": 2}))
    (cache / "COMPLETED").write_text("")
    before = list(seqio.get_global_cache_dirs())
    try:
        corpus = SeqioCorpus(
            {"pair": "foreign_a"},
            str(folder / "sets" / "one"),
            columns={"query": "inputs", "positive": "targets"},
            cache_dirs=[str(tmp_path / "cache")],
        )
        (source,) = corpus.training_sources(tmp_path)
        assert source.shards() == ["train[0/2]", "train[1/2]"]
        found = [example["query"] for shard in source.shards() for example in source.examples(shard, _bad())]
        assert sorted(found) == ["cached 0", "cached 1"]
    finally:
        seqio.set_global_cache_dirs(before)


def test_a_corpus_that_a_run_builds_is_refused(folder):
    with pytest.raises(BadInput, match="the sources of PythonCorpus are made by a run"):
        register_recipe("lab", ["gin/recipes/quickstart_scratch.gin"], vocabulary=folder)
