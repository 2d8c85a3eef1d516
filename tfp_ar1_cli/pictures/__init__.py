"""The pictures of runs. Matplotlib is imported with them, so import them late."""
