"""unpoison: reproducible backdoor attacks and defences for image classifiers."""
