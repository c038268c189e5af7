"""What to cite for each attack, as BibTeX."""

FGSM = """@inproceedings{goodfellow2015fgsm,
  title = {Explaining and Harnessing Adversarial Examples},
  author = {Goodfellow, Ian J. and Shlens, Jonathon and Szegedy, Christian},
  booktitle = {International Conference on Learning Representations},
  year = {2015},
  eprint = {1412.6572},
  archiveprefix = {arXiv}
}"""

PGD = """@inproceedings{madry2018pgd,
  title = {Towards Deep Learning Models Resistant to Adversarial Attacks},
  author = {Madry, Aleksander and Makelov, Aleksandar and Schmidt, Ludwig and Tsipras,
    Dimitris and Vladu, Adrian},
  booktitle = {International Conference on Learning Representations},
  year = {2018},
  eprint = {1706.06083},
  archiveprefix = {arXiv}
}"""

MIM = """@inproceedings{dong2018mim,
  title = {Boosting Adversarial Attacks with Momentum},
  author = {Dong, Yinpeng and Liao, Fangzhou and Pang, Tianyu and Su, Hang and Zhu, Jun and
    Hu, Xiaolin and Li, Jianguo},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year = {2018},
  eprint = {1710.06081},
  archiveprefix = {arXiv}
}"""

AUTOATTACK = """@inproceedings{croce2020autoattack,
  title = {Reliable Evaluation of Adversarial Robustness with an Ensemble of Diverse
    Parameter-Free Attacks},
  author = {Croce, Francesco and Hein, Matthias},
  booktitle = {International Conference on Machine Learning},
  year = {2020},
  eprint = {2003.01690},
  archiveprefix = {arXiv}
}"""

SQUARE = """@inproceedings{andriushchenko2020square,
  title = {Square Attack: A Query-Efficient Black-Box Adversarial Attack via Random Search},
  author = {Andriushchenko, Maksym and Croce, Francesco and Flammarion, Nicolas and Hein,
    Matthias},
  booktitle = {European Conference on Computer Vision},
  year = {2020},
  eprint = {1912.00049},
  archiveprefix = {arXiv}
}"""

DDN = """@inproceedings{rony2019ddn,
  title = {Decoupling Direction and Norm for Efficient Gradient-Based {L2} Adversarial Attacks
    and Defenses},
  author = {Rony, Jérôme and Hafemann, Luiz G. and Oliveira, Luiz S. and Ben Ayed, Ismail and
    Sabourin, Robert and Granger, Eric},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition},
  year = {2019},
  eprint = {1811.09600},
  archiveprefix = {arXiv}
}"""

DEEPFOOL = """@inproceedings{moosavi2016deepfool,
  title = {{DeepFool}: A Simple and Accurate Method to Fool Deep Neural Networks},
  author = {Moosavi-Dezfooli, Seyed-Mohsen and Fawzi, Alhussein and Frossard, Pascal},
  booktitle = {IEEE Conference on Computer Vision and Pattern Recognition},
  year = {2016},
  eprint = {1511.04599},
  archiveprefix = {arXiv}
}"""

CW = """@inproceedings{carlini2017cw,
  title = {Towards Evaluating the Robustness of Neural Networks},
  author = {Carlini, Nicholas and Wagner, David},
  booktitle = {IEEE Symposium on Security and Privacy},
  year = {2017},
  eprint = {1608.04644},
  archiveprefix = {arXiv}
}"""

TRANSFER = """@misc{papernot2016transfer,
  title = {Transferability in Machine Learning: from Phenomena to Black-Box Attacks using
    Adversarial Samples},
  author = {Papernot, Nicolas and McDaniel, Patrick and Goodfellow, Ian},
  year = {2016},
  eprint = {1605.07277},
  archiveprefix = {arXiv}
}"""
