"""Data sets to models, and how good they are."""
