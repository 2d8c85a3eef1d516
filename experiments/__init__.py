"""Experiments with the models: the grid runner, its reports, and the results."""
