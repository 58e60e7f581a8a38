"""What is wrong with a data set besides a backdoor: copies, labels that do not fit, images without content."""
