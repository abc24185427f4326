"""Text to token ids: a byte-level BPE that is trained here, or a Hugging Face tokenizer.

`transformers` takes seconds to import and is imported only for Hugging Face tokenizers.
"""

import functools
import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from gr_sweep.data.sources import check_hub, first_line
from gr_sweep.errors import DataError

if TYPE_CHECKING:
    import tokenizers

END_OF_TEXT = "<|endoftext|>"
"""The separator of the trained tokenizer; its id is 0."""

_SPACE = " \t\n\r\x0b\x0c"
_LETTER = "A-Za-z\u00c0-\u1fff\u2c00-\U0010ffff"
_WORD = (
    f"'(?:[sdmt]|ll|ve|re)| ?[{_LETTER}]+| ?[0-9]+| ?[^{_SPACE}0-9{_LETTER}]+"
    f"|[{_SPACE}]+(?![^{_SPACE}])|[{_SPACE}]+"
)
"""GPT-2's division of text into words, with its Unicode classes written out as ranges.

Python's `re` and the regex engine of `tokenizers` then cut every text at the same positions,
whatever version of Unicode they implement, so words can be looked up instead of tokenised again.
"""

_LONG = re.compile(f"[^{_SPACE}]{{1000}}|[{_SPACE}]{{1000}}")
"""Where words are cut that a tokenizer is trained on. Time grows with the square of their length: a
word of a megabyte, such as an encoded picture, would take hours."""

_REMEMBERED_WORDS = 1 << 18
"""About 50 MB, in each process that tokenises."""


def token_dtype(vocab_size: int) -> np.dtype:
    """The smallest unsigned type that holds every token id."""
    return np.dtype(np.uint16 if vocab_size <= 1 << 16 else np.uint32)


class TrainedTokenizer:
    """A byte-level BPE that tokenises each distinct word once: 5 to 7 times as fast as whole texts,
    with the same tokens, since BPE never merges across words."""

    eot_id = 0
    prefix: tuple[int, ...] = ()

    def __init__(self, backend: "tokenizers.Tokenizer") -> None:
        backend.encode_special_tokens = True
        self._backend = backend
        self.vocab_size: int = backend.get_vocab_size()
        self._dtype = token_dtype(self.vocab_size)
        self._find_words = re.compile(_WORD).findall
        self._tokens_of_word = functools.lru_cache(_REMEMBERED_WORDS)(self._encode_word)

    @classmethod
    def load(cls, folder: Path) -> "TrainedTokenizer":
        """The tokenizer that `save` wrote into the folder."""
        from tokenizers import Tokenizer

        return cls(Tokenizer.from_file(str(folder / "tokenizer.json")))

    def __reduce__(self) -> tuple[Any, ...]:
        """For another process, which remembers words of its own."""
        return TrainedTokenizer, (self._backend,)

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """The token ids of each text, [tokens] in `token_dtype`, without separator.

        A separator that occurs in a text is tokenised as ordinary text.
        """
        packed = (b"".join(map(self._tokens_of_word, self._find_words(text))) for text in texts)
        return [np.frombuffer(ids, dtype=self._dtype) for ids in packed]

    def _encode_word(self, word: str) -> bytes:
        ids = self._backend.encode(word, add_special_tokens=False).ids
        return np.array(ids, dtype=self._dtype).tobytes()

    def save(self, folder: Path) -> None:
        """Writes a folder that `AutoTokenizer.from_pretrained` loads."""
        folder.mkdir(parents=True, exist_ok=True)
        self._backend.save(str(folder / "tokenizer.json"))
        config = {
            "tokenizer_class": "PreTrainedTokenizerFast",
            "eos_token": END_OF_TEXT,
            "clean_up_tokenization_spaces": False,
        }
        (folder / "tokenizer_config.json").write_text(json.dumps(config, indent=2) + "\n")


def train_tokenizer(texts: Sequence[str], vocab_size: int) -> TrainedTokenizer:
    """A byte-level BPE of at most `vocab_size` tokens (257 or more: the bytes and the separator),
    deterministic in the texts and their order."""
    from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers

    backend = Tokenizer(models.BPE())
    backend.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORD), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    backend.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocab_size,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    backend.train_from_iterator((_LONG.sub(r"\g<0>\n", text) for text in texts), trainer)
    return TrainedTokenizer(backend)


class PretrainedTokenizer:
    """A Hugging Face tokenizer; its end-of-sequence token separates documents."""

    def __init__(self, hf_tokenizer: Any, name: str) -> None:
        self._hf_tokenizer = hf_tokenizer
        self._backend: Any = getattr(hf_tokenizer, "backend_tokenizer", None)
        if self._backend is None or hf_tokenizer.eos_token_id is None:
            raise DataError(
                f"tokenizer {name} has no end-of-sequence token to separate documents, or is not "
                "in tokenizer.json; choose another, or train one (data.tokenizer=null)"
            )
        self.eot_id: int = hf_tokenizer.eos_token_id
        # Some vocabularies have gaps: the number of tokens can be below the largest id.
        self.vocab_size: int = max(len(hf_tokenizer), max(hf_tokenizer.get_vocab().values()) + 1)
        self._dtype = token_dtype(self.vocab_size)
        # A template can also end a text; here every document ends with the separator.
        template = hf_tokenizer("")["input_ids"]
        self.prefix: tuple[int, ...] = tuple(
            template[: -1 if template[-1:] == [self.eot_id] else None]
        )

    def __getstate__(self) -> dict[str, Any]:
        """What `encode` needs, so that another process need not import transformers."""
        return self.__dict__ | {"_hf_tokenizer": None}

    def encode(self, texts: Sequence[str]) -> list[np.ndarray]:
        """As `TrainedTokenizer.encode`."""
        # Half as long as by transformers, which also looks for the place of every token.
        self._backend.encode_special_tokens = True
        encodings = self._backend.encode_batch_fast(list(texts), add_special_tokens=False)
        return [np.array(encoding.ids, dtype=self._dtype) for encoding in encodings]

    def save(self, folder: Path) -> None:
        """Writes a folder that `AutoTokenizer.from_pretrained` loads."""
        self._hf_tokenizer.save_pretrained(folder)


Tokenizer = TrainedTokenizer | PretrainedTokenizer


def load_tokenizer(
    name: str, gguf_file: str | None = None, *, may_download: bool = True
) -> PretrainedTokenizer:
    """The Hugging Face tokenizer with this name or in this folder.

    Raises:
        DataError: it cannot be loaded, the Hub does not answer, or it has no end-of-sequence token.
    """
    from transformers import AutoTokenizer

    # Otherwise transformers would ask on a terminal whether to run code from the folder.
    options: dict[str, Any] = {"trust_remote_code": False}
    if gguf_file is not None:
        options["gguf_file"] = gguf_file
    try:
        try:
            hf_tokenizer = AutoTokenizer.from_pretrained(name, local_files_only=True, **options)
        except OSError:
            if Path(name).is_dir() or not may_download:
                raise
            check_hub(f"tokenizer {name}")
            hf_tokenizer = AutoTokenizer.from_pretrained(name, **options)
    except (OSError, ValueError, ImportError, LookupError, TypeError, AttributeError) as error:
        how = "" if may_download else f"; fetch it first (hf download {name})"
        raise DataError(f"tokenizer {name} cannot be loaded ({first_line(error)}){how}") from error
    return PretrainedTokenizer(hf_tokenizer, name)


def tokenizer_files(name: str, gguf_file: str | None = None) -> list[Path]:
    """The files of a tokenizer in a local folder; none for a name on the Hub."""
    folder = Path(name)
    if gguf_file is not None and folder.is_dir():
        return [folder / gguf_file]
    patterns = ("*token*", "vocab*", "merges*", "*.model", "special_tokens_map.json")
    return sorted({path for pattern in patterns for path in folder.glob(pattern) if path.is_file()})
