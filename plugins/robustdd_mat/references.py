"""What to cite for MAT, as BibTeX."""

MAT = """@misc{lai2025mat,
  title = {Robust Dataset Distillation by Matching Adversarial Trajectories},
  author = {Lai, Wei and Ding, Tianyu and Ren, Dongdong and Wang, Lei and Huo, Jing and Gao,
    Yang and Li, Wenbin},
  year = {2025},
  eprint = {2503.12069},
  archiveprefix = {arXiv}
}"""
