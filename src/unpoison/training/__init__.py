"""Training: the one loop, its recipes and optimiser, augmentation, several processes."""
