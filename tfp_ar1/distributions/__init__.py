"""The distributions of the family."""
