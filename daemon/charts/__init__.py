"""Charts of rounds: on a terminal, as one page of HTML, as a picture."""
