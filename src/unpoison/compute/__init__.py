"""Device, precision and forward passes: what methods need without the training loop."""
