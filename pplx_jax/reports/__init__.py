"""HTML pages of runs, sweeps, evaluations and data."""
