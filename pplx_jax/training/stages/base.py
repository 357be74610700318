"""The interface of a stage for the trainer."""

import dataclasses
from collections.abc import Mapping
from typing import ClassVar, Literal

import jax

from pplx_jax.data.batches.batch_spec import BatchSpec
from pplx_jax.models.transformer import Qwen3
from pplx_jax.objectives.corruption import Corruption
from pplx_jax.objectives.token_prediction import Targets


@dataclasses.dataclass(frozen=True)
class Step:
    """Values of a step that a loss may use.

    Attributes:
      rng: the key of the step.
      progress: share of the stage's steps done, float32 in [0, 1).
      mask_id: the vocabulary's mask token.
      learned: parameters of the loss, with the names of `Stage.learned`.
    """

    rng: jax.Array
    progress: jax.Array
    mask_id: int
    learned: Mapping[str, jax.Array] = dataclasses.field(default_factory=dict)


class Stage:
    """A stage declares its batches and has a loss; the trainer does the rest.

    To add one, write a frozen dataclass that inherits from this class, in any package, set `name`, and define `batch`
    and `loss`. A recipe lists it by `from my_lab.stages import MyStage` and `my/Training.stage = @MyStage()`.

    Attributes:
      name: of the stage, of its folder in the workdir, and of its row in results and reports.
      starts_from: name of the stage whose parameters it starts from, if in the recipe; else the initial weights.
      summary: what it trains on, in a few words for reports and model cards.
      model_kind: "context_v1" if it trains chunks in the context of their document, else "v1".
      predicts_tokens: whether it trains the output head; the stages after it drop an untied head.
      causal: whether the stage has a causal mask; None for the mask of the recipe's model.
    """

    name: ClassVar[str]
    starts_from: ClassVar[str | None] = None
    summary: ClassVar[str] = ""
    model_kind: ClassVar[Literal["v1", "context_v1"]] = "v1"
    predicts_tokens: ClassVar[bool] = False
    causal: ClassVar[bool | None] = None

    @property
    def batch(self) -> BatchSpec:
        """What a batch contains: the kind of examples, how many, and the length of a sequence."""
        raise NotImplementedError

    def learned(self) -> dict[str, float]:
        """Returns initial values of scalars of the loss that are trained with the model, such as a temperature."""
        return {}

    def predicted_share(self) -> float:
        """Returns the expected share of the tokens that the output head predicts, for the cost of a step."""
        return 0.0

    def targets(self, tokens: jax.Array, corruption: Corruption) -> Targets | None:
        """Returns which masked token each position predicts, tokens [B, L]; None if the stage predicts none.

        A run scores a stage with targets on masked tokens of held-out text, before and after.
        """
        return None

    def loss(self, model: Qwen3, batch: dict[str, jax.Array], step: Step) -> tuple[jax.Array, dict[str, jax.Array]]:
        """Returns the scalar loss of a batch, and metrics to log with it."""
        raise NotImplementedError
