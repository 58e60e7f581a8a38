"""What attacks share to make triggers: the attack's contract, the context, surrogates, encoders, patterns, stamps."""
