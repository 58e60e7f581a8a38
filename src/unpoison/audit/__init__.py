"""A checkpoint of unknown origin and a few images: the pipeline's stages on them, and a verdict. `python -m unpoison.audit`."""
