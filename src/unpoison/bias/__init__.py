"""Bias of attributes: a network with a head for each, and the mean of what Cognitive Distillation keeps for it."""
