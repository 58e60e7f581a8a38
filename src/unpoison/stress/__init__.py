"""Stress tests of purified models, by an attacker who has his poisoned images: is the backdoor gone, or only asleep?"""
