"""Estimates the cost of a run and measures its progress."""
