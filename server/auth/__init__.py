"""Which clients may call: tokens, certificates, and what each call needs. Independent of gRPC and HTTP."""
