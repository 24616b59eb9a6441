"""PostgreSQL: the outbox, the retry queue, the circuit's store, the migrations, an embedded server."""
