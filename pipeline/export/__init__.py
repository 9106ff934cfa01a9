"""Take a finished run elsewhere: its adapter, merged weights, int8, GGUF, a Modelfile; checked, served, talked to."""
