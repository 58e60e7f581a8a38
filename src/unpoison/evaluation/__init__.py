"""Grading: the only library code that is handed the ground truth."""
