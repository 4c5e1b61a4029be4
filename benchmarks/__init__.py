"""Timings: speed, memory and scale, always paired; and what a user waits for."""
