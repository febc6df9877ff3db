"""The fields of a run, and how their values are read, checked and written."""
