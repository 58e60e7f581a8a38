"""A data set of unknown origin: parameters by rule, canaries that give scores a scale, `make scan` and `make export`."""
