"""The one room that knows gin: it reads recipes, checks them, and hands out plain dataclasses.

How a recipe file is laid out
-----------------------------
A recipe is a few includes, a few macros and the list of its stages. Every stage is a *scope*, and what a
stage does not set itself it takes from the unscoped bindings:

    # gin/recipes/example.gin
    include 'gin/models/nano.gin'            # binds Qwen3Config and nothing else
    include 'gin/stages/pair.gin'            # binds pair/... and nothing else

    SEED = 0                                 # a macro: define once, use as %SEED

    run.seed = %SEED
    run.model = @Qwen3Config()
    run.stages = [@diffusion/Training(), @pair/Training()]

    Logging.every_steps = 10                 # every stage
    Training.logging = @Logging()
    Training.optimizer = @Optimizer()        # no scope: built in the scope of the stage that asks for it
    Optimizer.weight_decay = 0.1

    # gin/stages/pair.gin
    pair/Training.stage = @PairStage()       # so this is the pair/PairStage
    pair/Training.steps = %gin.REQUIRED      # the recipe must say
    pair/Optimizer.peak_learning_rate = 1e-3

The rules of gin that make this work:

- `@pair/Training()` is built in the scope `pair`. A reference *without* a scope is built in the scope of
  whoever holds it, so `Training.optimizer = @Optimizer()` is written once and `pair/Optimizer.*` still
  reaches the pair stage. A reference *with* a scope replaces the current one.
- An outer binding (`Training.steps`) yields to a scoped one (`pair/Training.steps`); of two bindings of the
  same key the later one wins; `--gin_param` comes last. One of those that changes nothing is refused.
- A macro is a scope too: an unscoped reference inside `MODEL = @Qwen3Config()` is built in the scope `MODEL`,
  not in the stage's. Keep macros for values.
- References are always called (`@Name()`): a recipe binds values and never hands out constructors.
- `from my_lab.stages import MyStage` makes a class of another package bindable in that recipe.

What gin would accept in silence is an error here, in one line that names file and line: see `rules`.
"""

from pplx_jax.configuration.config import Config, load
from pplx_jax.configuration.table import Table

__all__ = ["Config", "Table", "load"]
