"""Helpers for the whole host layer: messages, options, storage and memory."""
