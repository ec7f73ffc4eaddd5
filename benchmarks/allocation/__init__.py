"""Which level where, within a budget: searches against each other at equal exact bits, on text they have not seen."""
