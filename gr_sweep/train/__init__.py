"""One loop for every job. Knows a routed model, batches of token ids and a tracker."""
