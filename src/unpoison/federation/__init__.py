"""Federated training, simulated in one process: clients with parts of the training set, attackers among them, aggregators."""
