"""Codecs and sans-IO machines of the public libp2p wire: no sockets, no clock, no trio."""
