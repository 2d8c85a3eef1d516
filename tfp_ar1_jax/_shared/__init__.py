"""The originals of modules that this package overrides; see `_rewrite`."""
