"""Ahead-of-time compilation of a stage for a TPU topology: memory, communication and time of a step."""
