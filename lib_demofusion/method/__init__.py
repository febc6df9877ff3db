"""Implements the paper's method on tensors: the plan of the stages, views, fusion, weights and the skip residual.

The host is the program that runs the model and calls this package: the webui or the benchmark.
"""
