"""Scenario, profile and model files: typed, overlaid, and checked before anything starts."""
