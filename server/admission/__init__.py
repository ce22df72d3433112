"""Which requests are accepted: the bounded queue, deadlines and priorities, and requests in flight.

Imports server.errors alone.
"""
