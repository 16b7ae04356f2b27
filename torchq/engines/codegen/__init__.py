"""From an environment's torch functions to scalar C++ and Triton code: one definition, every engine."""
