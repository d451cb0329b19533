"""Settings of a run: dataclasses (schema, codec), YAML read strictly, and every check before anything is loaded."""
