"""One plain function for each command; they return the models that ``--json`` prints."""
