"""Evaluation: the library's grading, which is handed the ground truth, as no method is."""
