"""Train byte-level byte-pair encoding (BPE) on a text, with the package tokenizers.

The first 256 tokens are the bytes, so any text can be encoded. Each further one joins the two tokens that follow each
other most often in the training text, within the pieces of GPT-2's pattern: a word with the space before it, a number,
punctuation. The result is a tokenizer like that of an imported model.

Sources: Sennrich et al. 2016, "Neural Machine Translation of Rare Words with Subword Units"; Radford et al. 2019
(GPT-2), for bytes and the pattern.

    tokenizer = train_bpe(training_pieces(blocks, characters), 1024)
"""

import itertools
import math
from collections.abc import Iterable, Iterator

from tinygpt.data.tokenizer import Block, GPT2Tokenizer, HuggingFaceTokenizer, cut_safely, tokenizers_library

PIECE = 1 << 11  # characters; without spaces, a piece is one word, in which each merge takes time like its length
MOST_READ = 1 << 22  # characters; a text without spaces has few equal words and takes 250 bytes per character
LEAST = 2  # a pair of tokens that occurs only once is not joined


def training_pieces(blocks: Iterable[Block], characters: int) -> Iterator[str]:
    """Cut a text of so many characters, where no token extends across the cuts. Of a text longer than MOST_READ, every
    second, third, ... piece is left, so that memory does not grow with the text."""
    small = (block[at : at + PIECE] for block in blocks for at in range(0, len(block), PIECE))
    pieces = cut_safely(small, GPT2Tokenizer.cut_before, PIECE)
    return itertools.islice(pieces, 0, None, math.ceil(characters / MOST_READ))


def train_bpe(texts: Iterable[str], vocab_size: int) -> HuggingFaceTokenizer:
    """Learn at most `vocab_size` tokens: fewer if the texts repeat too little. The same texts give the same tokens."""
    library = tokenizers_library()
    encoding = library.Tokenizer(library.models.BPE())
    encoding.pre_tokenizer = library.pre_tokenizers.ByteLevel(add_prefix_space=False)
    encoding.decoder = library.decoders.ByteLevel()
    trainer = library.trainers.BpeTrainer(
        vocab_size=vocab_size,
        min_frequency=LEAST,
        initial_alphabet=library.pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    encoding.train_from_iterator(texts, trainer)
    return HuggingFaceTokenizer(encoding.to_str())
