"""Code length: what data cost under a model, and under the coders that everyone has."""
