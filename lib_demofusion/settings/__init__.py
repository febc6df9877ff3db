"""Declares the fields, which are the settings of a DemoFusion run. Reads, checks and writes their values."""
