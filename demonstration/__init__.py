"""The page that `demo.py` serves: landmarks on a picture, and SepBN at work on it."""
