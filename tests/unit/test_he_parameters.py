from __future__ import annotations

import pytest

from delta.errors import ConfigError
from delta.methods.he.parameters import MAX_BITS, Ring, best_precision, choose_ring, key_bytes
from delta.methods.he.scheme import Scheme, library

SMALL = {degree: bits for degree, bits in MAX_BITS.items() if degree <= 16384}


def test_the_table_is_the_librarys_own_for_128_bits():
    seal = library()
    for degree, bits in MAX_BITS.items():
        assert seal.CoeffModulus.MaxBitCount(degree, seal.SEC_LEVEL_TYPE.TC128) == bits


@pytest.mark.parametrize(
    ("depth", "precision"), [(1, 28), (1, 40), (3, 26), (3, 38), (5, 26), (5, 40), (9, 30)]
)
def test_the_ring_is_the_smallest_that_is_secure_and_the_library_takes_it(depth, precision):
    ring = choose_ring(depth=depth, precision=precision)
    assert ring.depth == depth
    assert sum(ring.bits) <= MAX_BITS[ring.degree]
    assert all(sum(ring.bits) > bits for degree, bits in MAX_BITS.items() if degree < ring.degree)
    scheme = Scheme(ring)
    assert len(scheme.primes) == depth + 1
    assert scheme.context.key_context_data().total_coeff_modulus_bit_count() <= MAX_BITS[ring.degree]


@pytest.mark.parametrize("degree", SMALL)
def test_one_bit_more_than_the_table_is_refused_here_and_by_the_library(degree):
    total = SMALL[degree] + 1
    count = -(-total // 40)
    bits = [total // count + (i < total % count) for i in range(count)]
    assert sum(bits) == total
    if len(bits) >= 3:
        with pytest.raises(ConfigError, match="not 128-bit secure"):
            Ring.parse({"degree": degree, "bits": bits, "precision": 20}, what="ring")
    seal = library()
    parameters = seal.EncryptionParameters(seal.SCHEME_TYPE.CKKS)
    parameters.set_poly_modulus_degree(degree)
    parameters.set_coeff_modulus(seal.CoeffModulus.Create(degree, bits))
    context = seal.SEALContext(parameters, True, seal.SEC_LEVEL_TYPE.TC128)
    assert not context.parameters_set()
    assert "security standard" in context.parameters_error_message()


def test_slots_can_make_the_ring_larger():
    assert choose_ring(depth=1, precision=28).degree == 4096
    assert choose_ring(depth=1, precision=28, slots=2049).degree == 8192
    assert choose_ring(depth=1, precision=28, slots=8192).slots == 8192


@pytest.mark.parametrize(
    ("asked", "words"),
    [
        ({"depth": 40, "precision": 26}, "depth 40 at 26 bits needs 1114 bits .* up to 881; use fewer"),
        ({"depth": 3, "precision": 26, "slots": 16385}, "16385 slots, and the largest ring has 16384"),
        ({"depth": 0, "precision": 26}, "depth of at least 1"),
        ({"depth": 3, "precision": 8}, "20 to 50 bits"),
        ({"depth": 3, "precision": 50, "integer_bits": 20}, "at most 60 fit one prime"),
    ],
)
def test_what_no_ring_can_do_is_refused(asked, words):
    with pytest.raises(ConfigError, match=words):
        choose_ring(**asked)


def test_too_few_primes_are_told():
    with pytest.raises(ConfigError, match="too few primes of 20 bits"):
        Scheme(choose_ring(depth=20, precision=20, slots=16384, integer_bits=1))


def test_the_best_precision_stays_in_the_ring():
    for depth, at_least in ((1, 28), (3, 26), (5, 26)):
        best = best_precision(depth=depth, slots=1, at_least=at_least)
        ring = choose_ring(depth=depth, precision=at_least)
        assert best >= at_least
        assert choose_ring(depth=depth, precision=best).degree == ring.degree
        assert best == 40 or choose_ring(depth=depth, precision=best + 1).degree > ring.degree


def test_keys_weigh_no_more_than_was_counted():
    from delta.methods.he.scheme import bytes_of

    for depth in (1, 5):
        scheme = Scheme(choose_ring(depth=depth, precision=26))
        generator = scheme.seal.KeyGenerator(scheme.context)
        weight = len(bytes_of(generator.create_galois_keys([3])))
        assert 0.7 * key_bytes(scheme.ring) < weight <= key_bytes(scheme.ring)
