"""Frames to rows: the networks at work."""
