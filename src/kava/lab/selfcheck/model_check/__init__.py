"""Does a model work as a student: measured on a small random copy of it, or on the model itself."""
