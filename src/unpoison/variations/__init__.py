"""Variations of images by diffusion: the prior, the samplers, colour transfer, and whole data sets through the store."""
