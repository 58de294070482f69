"""Tests of the image runner."""
