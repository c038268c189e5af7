"""What to cite for DM, as BibTeX."""

DM = """@inproceedings{zhao2023dm,
  title = {Dataset Condensation with Distribution Matching},
  author = {Zhao, Bo and Bilen, Hakan},
  booktitle = {IEEE/CVF Winter Conference on Applications of Computer Vision},
  year = {2023},
  eprint = {2110.04181},
  archiveprefix = {arXiv}
}"""
