"""What everything stands on: errors, hyper-parameters, seeding, progress, files."""
