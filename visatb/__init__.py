"""The whole experiment as one command."""
