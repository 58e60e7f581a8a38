"""Parts that attacks make triggers of: the attack's contract, the context, surrogates, encoders, patterns, stamps."""
