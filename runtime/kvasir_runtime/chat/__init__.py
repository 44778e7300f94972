"""`kvasir-runtime chat`: a terminal client, with a model of its own or with a server's."""
