//! Network-namespace harness shared by tests, playground and benchmarks.
