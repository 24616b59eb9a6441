"""The Dataverse Web API: addresses, tokens, and what its answers mean."""
