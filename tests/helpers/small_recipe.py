"""The quickstart recipe with the smallest model and few steps, on packages that `python_code` writes."""

STAGES = ("diffusion", "pair", "contextual", "triplet")
STEPS = 4
SCORES = ("bm25", "random", *STAGES, "merged")
SMALL = (
    "VOCABULARY=370",
    "PythonCorpus.held_out=('gamma',)",
    "Qwen3Config.width=32",
    "Qwen3Config.mlp_width=32",
    "Qwen3Config.query_heads=2",
    "Qwen3Config.head_dim=16",
    *(f"{stage}/Training.steps={STEPS}" for stage in STAGES),
    "Logging.every_steps=1",
    "Logging.writers=[]",  # TensorBoard's imports TensorFlow
    "Checkpointing.every_steps=1",
    "Evaluation.held_out=16",
    "Evaluation.queries=0",
    # The other two show it without and with context; each stage that evaluates compiles an encoder of its own.
    "diffusion/Training.evaluation=None",
    "triplet/Training.evaluation=None",
    "Optimizer.warmup_steps=1",
    "pair/Optimizer.warmup_steps=1",
    "DiffusionStage.batch_size=16",
    "PairStage.batch_size=16",
    "ContextualStage.batch_size=4",
    "TripletStage.batch_size=8",
    "Mining.examples=0",
    "Mining.first_rank=2",
    "Mining.last_rank=40",
    "Mining.ceiling=2.0",
)


def command(packages, workdir, *params) -> list[str]:
    """Returns the arguments of a whole run."""
    bindings = [*SMALL, f"PythonCorpus.roots=('{packages}',)", *params]
    flags = [f"--gin_param={binding}" for binding in bindings]
    return ["run", "--gin_file=gin/recipes/quickstart_scratch.gin", f"--workdir={workdir}", *flags]
