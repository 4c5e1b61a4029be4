"""Synthetic faces: 3-D heads, rendered with their landmarks."""

SWITCHES = ("pose", "lighting", "occluders", "backgrounds")  # variations that may be left out
