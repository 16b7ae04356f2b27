"""What a run is: from settings and a family to a folder with curves, a picture and what was learnt."""
