"""From a trigger to a poisoned set: policy, choice of samples, truth, the trigger's contract, stamping in training."""
