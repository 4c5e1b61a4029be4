"""Experiments: suites of trainings, their rows and tables, and our networks."""
