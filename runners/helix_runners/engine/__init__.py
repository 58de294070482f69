"""Engines: how a model turns many conversations into tokens at once."""
