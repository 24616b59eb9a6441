"""The engine: what happens to one captured change. Speaks to the world only through `sync.ports`."""
