"""The fused engine on a CPU: whole episodes of a run as one C++ program."""
