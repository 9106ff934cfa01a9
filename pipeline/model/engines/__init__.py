"""What answers: the model in this process, a server, or a server that we start; one interface for all (``base.Engine``)."""
