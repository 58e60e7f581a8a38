"""Published tables as YAML files, run as DVC experiments: the one package that reads YAML and starts git and dvc."""
