"""What attackers share to make triggers: the context, surrogates, assets, encoders, patterns."""
