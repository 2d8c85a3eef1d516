"""Training of a run. Import late: all modules except `strategies` need Keras."""
