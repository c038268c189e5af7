"""What to cite for DC and DSA, as BibTeX."""

DC = """@inproceedings{zhao2021dc,
  title = {Dataset Condensation with Gradient Matching},
  author = {Zhao, Bo and Mopuri, Konda Reddy and Bilen, Hakan},
  booktitle = {International Conference on Learning Representations},
  year = {2021},
  eprint = {2006.05929},
  archiveprefix = {arXiv}
}"""

DSA = """@inproceedings{zhao2021dsa,
  title = {Dataset Condensation with Differentiable Siamese Augmentation},
  author = {Zhao, Bo and Bilen, Hakan},
  booktitle = {International Conference on Machine Learning},
  year = {2021},
  eprint = {2102.08259},
  archiveprefix = {arXiv}
}"""
