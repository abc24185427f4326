"""From a trained model to the owners of its units: attribution, assignment, labels of rounds."""
