"""What to cite for each coreset, as BibTeX."""

HERDING = """@inproceedings{welling2009herding,
  title = {Herding Dynamical Weights to Learn},
  author = {Welling, Max},
  booktitle = {International Conference on Machine Learning},
  year = {2009}
}"""

K_CENTRE = """@inproceedings{sener2018coreset,
  title = {Active Learning for Convolutional Neural Networks: A Core-Set Approach},
  author = {Sener, Ozan and Savarese, Silvio},
  booktitle = {International Conference on Learning Representations},
  year = {2018},
  eprint = {1708.00489},
  archiveprefix = {arXiv}
}"""

K_MEANS = """@article{lloyd1982kmeans,
  title = {Least Squares Quantization in {PCM}},
  author = {Lloyd, Stuart P.},
  journal = {IEEE Transactions on Information Theory},
  volume = {28},
  number = {2},
  pages = {129--137},
  year = {1982}
}"""
