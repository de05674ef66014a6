"""Text as tokens, in pieces that are tokenised once and laid one after another.

    " was born in"  ->  [41 87 23]         pieces 5 0 9  ->  [41 87 23 | . . | 60 12]   tokens
                                                             [ 0  0  0 |     |  2  2]   which piece each is of

Cut between pieces, never across, a value's tokens are the same wherever it stands. `BLANK` is no text: it stands before
a text and fills up after it.

Source: Sennrich et al. 2016, https://arxiv.org/abs/1508.07909 (byte-pair encoding), as sentencepiece trains it.

Shape letters: B row, S piece of a row, T token.
"""

import io
from collections.abc import Sequence
from typing import Protocol

import numpy as np

from doge_lab.tasks.base import Tokens

BLANK = 0


class Tokeniser(Protocol):
    """Text to token ids and back. `n_tokens` counts the blank."""

    n_tokens: int

    def encode(self, text: str) -> list[int]: ...

    def decode(self, tokens: Sequence[int]) -> str: ...


class Bytes:
    """A token is a byte of UTF-8, plus one."""

    n_tokens = 257

    def encode(self, text: str) -> list[int]:
        return [1 + byte for byte in text.encode()]

    def decode(self, tokens: Sequence[int]) -> str:
        return bytes(token - 1 for token in tokens).decode()


class SentencePiece:
    """Byte-pair merges, learned from `corpus`: the same corpus gives the same tokens."""

    def __init__(self, corpus: Sequence[str], n_tokens: int) -> None:
        import sentencepiece

        model = io.BytesIO()
        sentencepiece.SentencePieceTrainer.train(
            sentence_iterator=iter(corpus),
            model_writer=model,
            model_type="bpe",
            vocab_size=n_tokens,
            character_coverage=1.0,
            unk_id=BLANK,  # never met: every character of the corpus is a token
            bos_id=-1,
            eos_id=-1,
            pad_id=-1,
            # spaces stay where they are, so that tokens decode to the text exactly
            normalization_rule_name="identity",
            add_dummy_prefix=False,
            remove_extra_whitespaces=False,
            num_threads=1,
            minloglevel=3,
        )
        self._processor = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
        self.n_tokens = n_tokens

    def encode(self, text: str) -> list[int]:
        return list(self._processor.encode(text))

    def decode(self, tokens: Sequence[int]) -> str:
        return str(self._processor.decode([int(token) for token in tokens]))


class Pieces:
    """Texts as tokens, each known by its index. Index 0 is the empty text."""

    def __init__(self, tokeniser: Tokeniser, texts: Sequence[str]) -> None:
        tokens = [[], *(tokeniser.encode(text) for text in texts)]
        self.length = np.array([len(part) for part in tokens])
        self._start = self.length.cumsum() - self.length
        self._tokens = np.array([token for part in tokens for token in part], dtype=np.int64)

    def tokens(self, index: int) -> Tokens:
        start = self._start[index]
        return self._tokens[start : start + self.length[index]]

    def lay_out(self, pieces: Tokens, width: int) -> tuple[Tokens, Tokens]:
        """Rows of pieces [B, S] as tokens [B, width], blank at the end, and the place in S each is of; −1 for blank."""
        n_rows, n_places = pieces.shape
        length = self.length[pieces]
        ends = length.cumsum(axis=1)
        place = np.repeat(np.arange(n_rows * n_places), length.ravel())
        row = place // n_places
        column = np.arange(len(place)) - np.repeat(ends[:, -1].cumsum() - ends[:, -1], ends[:, -1])
        into = column - (ends - length).ravel()[place]
        tokens = np.full((n_rows, width), BLANK, dtype=np.int64)
        places = np.full((n_rows, width), -1, dtype=np.int64)
        tokens[row, column] = self._tokens[self._start[pieces.ravel()[place]] + into]
        places[row, column] = place % n_places
        return tokens, places
