"""Which settings may differ between two starts of one run. The fingerprint of a recipe leaves them out."""

from collections.abc import Mapping

# Where a run computes, how often it logs and saves, but nothing of what it computes. None: every parameter of a name.
CHANGEABLE: Mapping[str, frozenset[str] | None] = {
    "run": frozenset({"mesh", "processes"}),
    "Mesh": None,
    "Processes": None,
    "Training": frozenset(
        {
            "log_every_steps",
            "checkpoint_every_seconds",
            "checkpoint_every_steps",
            "keep_checkpoints",
            "keep_every_steps",
            "keep_every_seconds",
            "keep_best",
            "best_metric",
            "best_is_highest",
            "profile_steps",
        }
    ),
}


def is_changeable(key: str) -> bool:
    """Returns whether a setting such as "pair/Training.log_every_steps" is one of `CHANGEABLE`."""
    name, _, parameter = key.rpartition("/")[2].partition(".")
    parameters = CHANGEABLE.get(name, frozenset())
    return parameters is None or parameter in parameters
