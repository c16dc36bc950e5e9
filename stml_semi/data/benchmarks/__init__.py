"""The benchmarks of the field by name: facts, layouts, tables."""
