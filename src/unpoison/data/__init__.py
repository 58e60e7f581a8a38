"""Data: sources, the on-disk formats, overlays, augmentation."""
