"""What the command line does, one module a command. Each returns the exit status."""
