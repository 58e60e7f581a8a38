"""Data: sets of images, overlays over them, features and scores, and their formats on disk."""
