"""The result table, and what follows from it in numbers."""
