"""Real clients of other servers, each a program for an environment of its own, and the test that runs them."""
