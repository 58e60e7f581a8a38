"""The board: every method against every attack, put together from the records of suites."""
