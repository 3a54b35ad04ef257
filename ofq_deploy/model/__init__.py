"""What a quantized network is, and the files that hold one."""
