"""What is served over HTTP beside the worker."""
