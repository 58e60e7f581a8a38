"""Foundations: errors, hyper-parameters, seeding, progress, files, the content store. They import no other folder."""
