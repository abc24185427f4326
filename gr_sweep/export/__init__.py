"""A job's model as an ordinary Hugging Face checkpoint, without the blocks that are not kept."""
