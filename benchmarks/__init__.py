"""How fast we are beside others, measured in one run. See `benchmarks.run` and `benchmarks.gpu`."""
