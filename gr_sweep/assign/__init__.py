"""From a trained model to owners of its units: attribution, assignment, and the labels of rounds."""
