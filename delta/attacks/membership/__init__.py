"""Membership inference: was this record among those that a model was trained on?"""
