"""Tests of helix_runners.engine."""
