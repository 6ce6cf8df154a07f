"""What goes: erased with proof, or forgotten by rule."""
