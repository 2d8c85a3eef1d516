"""Data of the command line: `loading` reads them, `protocol` defines their interface."""
