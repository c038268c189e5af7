"""What to cite for the attacks, as BibTeX."""

FGSM = r"""
@inproceedings{goodfellow2015explaining,
  author        = {Goodfellow, Ian J. and Shlens, Jonathon and Szegedy, Christian},
  title         = {Explaining and Harnessing Adversarial Examples},
  booktitle     = {International Conference on Learning Representations},
  year          = {2015},
  eprint        = {1412.6572},
  archiveprefix = {arXiv},
}
"""

PGD = r"""
@inproceedings{madry2018towards,
  author    = {Madry, Aleksander and Makelov, Aleksandar and Schmidt, Ludwig and Tsipras, Dimitris
                 and Vladu, Adrian},
  title     = {Towards Deep Learning Models Resistant to Adversarial Attacks},
  booktitle = {International Conference on Learning Representations},
  year      = {2018},
  url       = {https://openreview.net/forum?id=rJzIBfZAb},
}
"""

MIM = r"""
@inproceedings{dong2018boosting,
  author    = {Dong, Yinpeng and Liao, Fangzhou and Pang, Tianyu and Su, Hang and Zhu, Jun and Hu,
                 Xiaolin and Li, Jianguo},
  title     = {Boosting Adversarial Attacks with Momentum},
  booktitle = {Proceedings of the IEEE Conference on Computer Vision and Pattern Recognition},
  pages     = {9185--9193},
  year      = {2018},
}
"""

APGD = r"""
@inproceedings{croce2020reliable,
  author        = {Croce, Francesco and Hein, Matthias},
  title         = {Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse
                 Parameter-free Attacks},
  booktitle     = {Proceedings of the 37th International Conference on Machine Learning},
  pages         = {2206--2216},
  year          = {2020},
  eprint        = {2003.01690},
  archiveprefix = {arXiv},
}
"""

FAB = r"""
@inproceedings{croce2020minimally,
  author        = {Croce, Francesco and Hein, Matthias},
  title         = {Minimally Distorted Adversarial Examples with a Fast Adaptive Boundary Attack},
  booktitle     = {Proceedings of the 37th International Conference on Machine Learning},
  pages         = {2196--2205},
  year          = {2020},
  eprint        = {1907.02044},
  archiveprefix = {arXiv},
}
"""

SQUARE = r"""
@inproceedings{andriushchenko2020square,
  author        = {Andriushchenko, Maksym and Croce, Francesco and Flammarion, Nicolas and Hein,
                 Matthias},
  title         = {Square Attack: A Query-efficient Black-box Adversarial Attack via Random
                 Search},
  booktitle     = {European Conference on Computer Vision},
  pages         = {484--501},
  year          = {2020},
  eprint        = {1912.00049},
  archiveprefix = {arXiv},
}
"""

DEEPFOOL = r"""
@inproceedings{moosavi2016deepfool,
  author        = {Moosavi-Dezfooli, Seyed-Mohsen and Fawzi, Alhussein and Frossard, Pascal},
  title         = {{DeepFool}: A Simple and Accurate Method to Fool Deep Neural Networks},
  booktitle     = {Proceedings of the IEEE Conference on Computer Vision and Pattern Recognition},
  pages         = {2574--2582},
  year          = {2016},
  eprint        = {1511.04599},
  archiveprefix = {arXiv},
}
"""

CW = r"""
@inproceedings{carlini2017towards,
  author        = {Carlini, Nicholas and Wagner, David},
  title         = {Towards Evaluating the Robustness of Neural Networks},
  booktitle     = {IEEE Symposium on Security and Privacy},
  pages         = {39--57},
  year          = {2017},
  doi           = {10.1109/SP.2017.49},
  eprint        = {1608.04644},
  archiveprefix = {arXiv},
}
"""

DDN = r"""
@inproceedings{rony2019decoupling,
  author        = {Rony, J{\'e}r{\^o}me and Hafemann, Luiz G. and Oliveira, Luiz S. and Ben Ayed,
                 Ismail and Sabourin, Robert and Granger, Eric},
  title         = {Decoupling Direction and Norm for Efficient Gradient-Based {L2} Adversarial
                 Attacks and Defenses},
  booktitle     = {Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern
                 Recognition},
  pages         = {4322--4330},
  year          = {2019},
  eprint        = {1811.09600},
  archiveprefix = {arXiv},
}
"""

TRANSFER = r"""
@misc{papernot2016transferability,
  author        = {Papernot, Nicolas and McDaniel, Patrick and Goodfellow, Ian},
  title         = {Transferability in Machine Learning: from Phenomena to Black-Box Attacks using
                 Adversarial Samples},
  year          = {2016},
  eprint        = {1605.07277},
  archiveprefix = {arXiv},
}
"""

VMI = r"""
@inproceedings{wang2021enhancing,
  author        = {Wang, Xiaosen and He, Kun},
  title         = {Enhancing the Transferability of Adversarial Attacks through Variance Tuning},
  booktitle     = {Proceedings of the IEEE/CVF Conference on Computer Vision and Pattern
                 Recognition},
  pages         = {1924--1933},
  year          = {2021},
  eprint        = {2103.15571},
  archiveprefix = {arXiv},
}
"""

JITTER = r"""
@misc{schwinn2021exploring,
  author        = {Schwinn, Leo and Raab, Ren{\'e} and Nguyen, An and Zanca, Dario and Eskofier,
                 Bjoern},
  title         = {Exploring Misclassifications of Robust Neural Networks to Enhance Adversarial
                 Attacks},
  year          = {2021},
  eprint        = {2105.10304},
  archiveprefix = {arXiv},
}
"""

SPSA = r"""
@inproceedings{uesato2018adversarial,
  author        = {Uesato, Jonathan and O'Donoghue, Brendan and Kohli, Pushmeet and van den Oord,
                 Aaron},
  title         = {Adversarial Risk and the Dangers of Evaluating Against Weak Attacks},
  booktitle     = {Proceedings of the 35th International Conference on Machine Learning},
  pages         = {5025--5034},
  year          = {2018},
  eprint        = {1802.05666},
  archiveprefix = {arXiv},
}
"""

AUTOATTACK = APGD + FAB + SQUARE
