"""The training of a run. All but `strategies` needs Keras, so import it late."""
