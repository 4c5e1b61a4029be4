"""Experiments: suites of trainings, their rows and tables, and the networks that are released."""
