"""A server under mixed traffic and disturbances for minutes: does it leak, and is every answer right?"""
