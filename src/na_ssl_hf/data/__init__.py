"""Data of every kind: DCASE folders, sound corpora for training, and synthetic sounds.

- `dcase` downloads, checks and loads the data of the DCASE challenges, Task 2.
- `corpora` downloads sound corpora and prepares them for the simulation.
- `synthetic` synthesises machines, backgrounds and random sounds.
- `sound_files` lists the sound files below folders, `tables` reads CSV tables, and `archive_extraction` unpacks ZIP
  archives.
"""
