"""Ahead-of-time compilation of a stage for a TPU topology: what fits, what travels, how long a step takes."""
