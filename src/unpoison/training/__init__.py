"""The one training loop, recipes, device and precision, forward passes."""
