"""Implements the paper's method on tensors: the plan of the stages, views, fusion, weights and the skip residual."""
