"""Where images come from: what only the stage `prepare` uses."""
