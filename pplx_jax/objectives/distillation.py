"""Losses that teach a model the scores of another one, such as a cross-encoder, for a query's positive and negatives.

The student's score of a text is its cosine with the query over the temperature, which is the logit of the contrastive
losses. Both losses compare the texts of one query alone: no other text of the batch takes part.
"""

from typing import Literal

import jax
import jax.numpy as jnp

from pplx_jax.objectives.contrastive import Metrics, mean_over_queries
from pplx_jax.objectives.similarity import normalize

Teacher = Literal["margin_mse", "kl"]


def distillation_loss(
    query: jax.Array,
    document: jax.Array,
    negatives: jax.Array,
    *,
    scores: jax.Array,
    teacher: Teacher,
    temperature: jax.Array | float,
    teacher_temperature: float = 1.0,
    weight: jax.Array | None = None,
) -> tuple[jax.Array, Metrics]:
    """Margin-MSE (arXiv 2010.02666) or the Kullback-Leibler divergence (arXiv 2010.11386) to a teacher's scores.

    With student scores s_ic = cos(q_i, c) / temperature and teacher scores t_ic / teacher_temperature, c over the
    positive p and the negatives n:

    - "margin_mse": mean over i and n of ((s_ip - s_in) - (t_ip - t_in))^2;
    - "kl": mean over i of sum_c P_ic (log P_ic - log S_ic), P and S the softmax of t_i and s_i over c.

    Only differences of a query's teacher scores matter, so a constant may be added to all scores of a query.

    Args:
      query: [N, D].
      document: [N, D], positives.
      negatives: [N, K, D].
      scores: [N, 1 + K], the teacher's scores of the positive and of each negative.
      teacher: which loss.
      temperature: of the student.
      teacher_temperature: the teacher's scores are divided by it.
      weight: [N], weight of each query in the mean.

    Returns:
      The loss and metrics: `accuracy` (share of queries whose positive scores above their own negatives),
      `positive_similarity`, `teacher_agreement` (share of the negatives that the student and the teacher rank on the
      same side of the positive).
    """
    query, document, negatives = normalize(query), normalize(document), normalize(negatives)
    cosines = jnp.sum(query[:, None] * jnp.concatenate([document[:, None], negatives], axis=1), axis=-1)  # [N, 1 + K]
    student = cosines / temperature
    target = jax.lax.stop_gradient(scores.astype(jnp.float32)) / teacher_temperature
    margin, wanted = student[:, :1] - student[:, 1:], target[:, :1] - target[:, 1:]
    if teacher == "margin_mse":
        per_query = jnp.mean(jnp.square(margin - wanted), axis=1)
    else:
        of_teacher, of_student = (jax.nn.log_softmax(each, axis=1) for each in (target, student))
        per_query = jnp.sum(jnp.exp(of_teacher) * (of_teacher - of_student), axis=1)
    metrics = {
        "accuracy": jnp.mean(jnp.all(margin > 0, axis=1)),
        "positive_similarity": jnp.mean(cosines[:, 0]),
        "teacher_agreement": jnp.mean(jnp.sign(margin) == jnp.sign(wanted)),
    }
    return mean_over_queries(per_query, weight=weight), metrics
