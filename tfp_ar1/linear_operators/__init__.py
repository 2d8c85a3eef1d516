"""The linear operators of the family."""
