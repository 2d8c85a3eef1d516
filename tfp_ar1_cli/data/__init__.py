"""The data that the command line trains on: `loading` reads them, `protocol` says what they are."""
