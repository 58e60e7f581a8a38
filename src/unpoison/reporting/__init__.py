"""The report of a run: its sections, tables and figures, and the page they go to."""
