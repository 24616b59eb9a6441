"""The domain that ships: peer mentors' certifications and their default mapping."""
