"""`covey demo`: three daemons on this machine do the main job while a person watches."""
