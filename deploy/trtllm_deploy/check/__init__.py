"""What is wrong or will be: a repository, a machine or a log in, findings with their fix out.

Changes nothing.
"""
