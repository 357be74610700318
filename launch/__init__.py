"""Launching on XManager: a recipe or a stage, once or as a sweep, on this machine or on TPU slices."""
