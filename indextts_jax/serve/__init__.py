"""HTTP: an endpoint of speech as OpenAI's clients use it, on the one scheduler, and a page."""
