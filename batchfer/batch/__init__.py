"""Inputs to jobs to outcomes: what is to do, who does it, what is on record."""
