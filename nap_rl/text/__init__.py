"""Text: files in their published formats, tokens, streams of them, and scores of a model."""
