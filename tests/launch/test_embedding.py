"""A corpus embedded on several slices: one job for each, and what is refused."""

import pytest
from helpers.fake_clouds import IMAGE, TOGETHER, launched

from launch import launch_flags, xm_launch
from launch.tpu_slices import TpuSlices
from pplx_jax.core.errors import BadInput

pytestmark = pytest.mark.filterwarnings("ignore:No path_separator")  # XManager's database
WORDS = "--model=/gcs/bucket/run/merged --input='gs://bucket/my texts/*.jsonl' --output=gs://bucket/vectors"
EMBED = {"gin_files": (), "gin_params": (), "workdir": "/gcs/bucket/embedding", "embed": WORDS}


def test_each_slice_is_a_job_with_its_share(cluster):
    made = cluster()
    given = {**EMBED, "embed_slices": 3, "slices": TpuSlices("v5e", "16x16")}
    failed, trials = launched(executor="kubernetes", **given)
    assert failed == 0 and [trial.workdir[-3:] for trial in trials] == ["000", "001", "002"]
    bodies = [body for method, _, body in made.requests if method == "POST"]
    assert len({body["metadata"]["name"] for body in bodies}) == len(bodies) == 3
    shares = []
    for body in bodies:
        [replicated] = body["spec"]["replicatedJobs"]
        job = replicated["template"]["spec"]
        [container] = job["template"]["spec"]["containers"]
        assert (replicated["replicas"], job["completions"]) == (1, 64)
        verb, *words = container["args"]
        assert verb == "embed" and {*TOGETHER} <= {*words}
        assert words[:2] == ["--model=/gcs/bucket/run/merged", "--input=gs://bucket/my texts/*.jsonl"]
        shares += [word for word in words if word.startswith("--shard=")]
    assert sorted(shares) == [f"--shard={number}/3" for number in range(3)]


def test_a_dry_run_shows_every_job_and_the_first_request(capsys):
    options = launch_flags.Options(
        **EMBED, embed_slices=2, executor="kubernetes", slices=TpuSlices("v5e", "2x4"), image=IMAGE, dry_run=True
    )
    xm_launch.show(xm_launch.plan(options), options)
    shown = capsys.readouterr().out
    assert "embed: pplx-jax embed --model=/gcs/bucket/run/merged '--input=gs://bucket/my texts/*.jsonl'" in shown
    assert "--shard=0/2" in shown and "--shard=1/2" in shown and '"kind": "JobSet"' in shown
    assert shown.endswith("2 trials, 2 jobs, executor kubernetes\n")


@pytest.mark.parametrize(
    ("changed", "told"),
    [
        ({"embed": f"{WORDS} --shard=0/2"}, "--embed has --shard, which each job gets from the launcher"),
        ({"embed": "--model=/m --input=texts --output=/v"}, "--embed has --input=texts; give an absolute path"),
        ({"embed": "--model=/m --input=/texts"}, "--output"),
        ({"embed": f"{WORDS} --rows=3"}, "unrecognized arguments: --rows=3"),
        ({"embed": "--model='/m"}, "No closing quotation; quote it as one string"),
        ({"stage": "pair"}, "--embed takes no recipe; leave out --gin_file"),
        ({"workdir": "embedding"}, "--workdir=embedding; give an absolute path"),
    ],
)
def test_what_cannot_be_launched_is_refused(changed, told):
    with pytest.raises(BadInput, match=told):
        xm_launch.plan(launch_flags.Options(**{**EMBED, **changed}))
