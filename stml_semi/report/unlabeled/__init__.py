"""The pool as the teacher sees it."""
