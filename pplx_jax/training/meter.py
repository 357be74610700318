"""Rates between two logged steps: tokens per second, utilisation, fill, waiting."""

import time

from pplx_jax.models.model_flops import peak_flops, training_flops
from pplx_jax.models.transformer import Qwen3Config
from pplx_jax.parallel.processes import over_processes


class Meter:
    """Tokens, waiting and utilisation. Sums are over all processes; waiting is that of the slowest process.

    Args:
      config: the encoder.
      devices: number of devices of the mesh.

    Attributes:
      tokens: of all processes since the start, as estimated by this one.
    """

    def __init__(self, config: Qwen3Config, devices: int):
        self._config = config
        peak = peak_flops()
        self._peak = None if peak is None else peak * devices
        self.tokens = 0
        self._checkpoint_seconds = self._wait_seconds = self._logged_wait = 0.0
        self._batch: dict[str, float] = {}
        self._sums = {"tokens": 0.0, "token_pairs": 0.0}
        self._since = time.monotonic()

    def lost(self, what: str, seconds: float) -> None:
        """Excludes a "compile" or an "evaluation" from the rates; counts the wait of steps for a "checkpoint"."""
        if what == "checkpoint":
            self._checkpoint_seconds += seconds
        else:
            self._since += seconds

    def read(self, counts: dict[str, float], tokens: int, wait_seconds: float) -> None:
        """Counts the batch of a step: `counts` of this process, and `tokens` of all processes."""
        self._batch = counts
        self.tokens += tokens
        self._wait_seconds += wait_seconds
        for name in self._sums:
            self._sums[name] += counts[name]

    def numbers(self, logged: dict[str, float]) -> dict[str, float]:
        """Returns the rates of the steps since the last call. Collective.

        Args:
          logged: metrics of the step; `masked_share` is the share of positions with a loss.

        Returns:
          `tokens_per_second`, `model_flops_utilization` if the device's peak is known, `fill` and `cut_tokens` of
          the last batch, `data_wait_seconds` and `checkpoint_seconds` since the start, `data_wait_share` of the time
          since the last call.
        """
        elapsed = max(time.monotonic() - self._since, 1e-9)
        own = self._sums | {
            "batch_tokens": self._batch["tokens"],
            "batch_cells": self._batch["cells"],
            "cut_tokens": self._batch["cut_tokens"],
            "wait": self._wait_seconds,
        }
        everywhere = over_processes(own)

        def total(name: str) -> float:
            return float(everywhere[name].sum())

        found = {"tokens_per_second": total("tokens") / elapsed}
        if self._peak is not None:
            flops = training_flops(
                self._config,
                tokens=total("tokens"),
                token_pairs=total("token_pairs"),
                predicted=total("tokens") * logged.get("masked_share", 0.0),
            )
            found["model_flops_utilization"] = flops / elapsed / self._peak
        found |= {
            "fill": total("batch_tokens") / max(total("batch_cells"), 1.0),
            "cut_tokens": total("cut_tokens"),
            "data_wait_seconds": float(everywhere["wait"].max()),
            "data_wait_share": (float(everywhere["wait"].max()) - self._logged_wait) / elapsed,
            "checkpoint_seconds": self._checkpoint_seconds,
        }
        self._logged_wait = float(everywhere["wait"].max())
        self._sums = dict.fromkeys(self._sums, 0.0)
        self._since = time.monotonic()
        return found
