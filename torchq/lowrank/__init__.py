"""The tensor world: low-rank Q-tensors, Q-learning on their factors, and the table they are measured against."""
