"""What is known of jobs before they run: what they need, and where they are to run."""
