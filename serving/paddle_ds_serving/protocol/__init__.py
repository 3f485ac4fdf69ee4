"""Requests and responses of each API as typed records, and the tables of what is refused."""
