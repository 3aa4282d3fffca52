"""A result folder: drawn, told, exported."""
