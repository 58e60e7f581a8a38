"""Training a clean model although the training set is poisoned, one file per method."""
