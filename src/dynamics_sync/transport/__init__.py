"""HTTP as every gateway uses it: what may be sent where, what a lost connection means, nothing sent twice."""
