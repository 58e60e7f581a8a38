"""Variations of images by diffusion: the prior, the samplers, the content-keyed store."""
