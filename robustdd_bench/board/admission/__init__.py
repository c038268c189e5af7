"""Admission: what must hold before a stranger's record and set are read or published."""
