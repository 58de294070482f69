"""Processes that fold the log and act on it."""
