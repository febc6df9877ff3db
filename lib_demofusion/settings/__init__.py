"""Declares the fields of a run, and reads, checks and writes their values."""
