"""The parameters of requests: their types, names that are known from elsewhere, and those of sampling."""
