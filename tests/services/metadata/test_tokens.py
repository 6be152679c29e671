"""Session tokens: no state, one instance, no forgery."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from services.metadata.tokens import MAX_TTL, Tokens

OLD, NEW = b"o" * 32, b"n" * 32
NOW = 1_800_000_000.0


def test_a_token_counts_down_to_nothing() -> None:
    """A token is good for its time to live and not a second longer."""
    token = Tokens([NEW]).make("i", 10, now=NOW)
    assert Tokens([NEW]).remaining(token, "i", now=NOW) == 10
    assert Tokens([NEW]).remaining(token, "i", now=NOW + 9) == 1
    assert Tokens([NEW]).remaining(token, "i", now=NOW + 10) is None


def test_a_token_lives_no_shorter_than_promised():
    """One made late in a second is still good when its last second has nearly passed."""
    token = Tokens([NEW]).make("i", 1, now=NOW + 0.9)
    assert Tokens([NEW]).remaining(token, "i", now=NOW + 1.8) is not None
    assert Tokens([NEW]).remaining(token, "i", now=NOW + 2.9) is None


def test_a_token_belongs_to_one_instance() -> None:
    """Shown by another instance it is worth nothing."""
    tokens = Tokens([NEW])
    assert tokens.remaining(tokens.make("i", 10), "j") is None


def test_tokens_survive_rotation() -> None:
    """What the previous secret made is accepted while it is listed, and not after."""
    token = Tokens([OLD]).make("i", MAX_TTL, now=NOW)
    assert Tokens([NEW, OLD]).remaining(token, "i", now=NOW) == MAX_TTL
    assert Tokens([NEW]).remaining(token, "i", now=NOW) is None


def test_two_tokens_are_never_equal() -> None:
    """The nonce keeps a token from telling when another was made."""
    tokens = Tokens([NEW])
    assert tokens.make("i", 10, now=NOW) != tokens.make("i", 10, now=NOW)


@given(st.integers(0, 67), st.characters(codec="ascii"))
def test_any_changed_character_spoils_it(place: int, other: str) -> None:
    """There is one text a token; every other is refused."""
    tokens = Tokens([NEW])
    token = tokens.make("i", 10, now=NOW)
    changed = token[:place] + other + token[place + 1 :]
    assert (tokens.remaining(changed, "i", now=NOW) is not None) == (changed == token)


@pytest.mark.parametrize(("ours", "alias"), [("-", "+"), ("_", "/")])
def test_the_other_alphabet_is_refused(ours: str, alias: str) -> None:
    """A token with a character of base64's first alphabet is another text."""
    tokens = Tokens([NEW])
    made = (tokens.make("i", 10, now=NOW) for _ in range(10_000))
    token = next(each for each in made if ours in each)
    assert tokens.remaining(token, "i", now=NOW) is not None
    assert tokens.remaining(token.replace(ours, alias), "i", now=NOW) is None


@given(st.text())
def test_any_text_is_refused_quietly(text: str) -> None:
    """No text raises."""
    assert Tokens([NEW]).remaining(text, "i") is None


@pytest.mark.parametrize("ttl", [0, -1, MAX_TTL + 1])
def test_a_time_to_live_beyond_the_limits_is_refused(ttl: int) -> None:
    """AWS's range: 1 to 21,600 seconds."""
    with pytest.raises(ValueError, match="a token lives"):
        Tokens([NEW]).make("i", ttl)


def test_a_secret_is_needed() -> None:
    """No secret, no service: an empty key would let anybody make tokens."""
    with pytest.raises(ValueError, match="need a secret"):
        Tokens([])
