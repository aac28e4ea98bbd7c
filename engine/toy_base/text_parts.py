"""A tokenizer of whole words and a random text encoder: of the toy base, and of the tiny base in engine.demo."""

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors
from transformers import T5TokenizerFast, UMT5Config, UMT5EncoderModel

SPECIAL = ("<pad>", "</s>", "<unk>")  # ids 0, 1, 2, as UMT5 has them (its unknown token is 2)
# Whole words keep captions short; single characters spell out the rest. Longer pieces score higher, so they win.
WORDS = [
    "a",
    "an",
    "the",
    "of",
    "in",
    "on",
    "and",
    "with",
    "around",
    "subject",
    "orbit",
    "camera",
    "ball",
    "drum",
    "cone",
    "vase",
    "red",
    "green",
    "blue",
    "yellow",
    "white",
    "person",
    "woman",
    "man",
    "scene",
    "video",
    "style",
    "high",
    "low",
    "light",
    "slow",
    "motion",
    "turning",
]
CHARACTERS = "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789.,;:!?'\"()[]-_/&%+#"


def build_text_encoder(vocabulary: int, width: int) -> UMT5EncoderModel:
    return UMT5EncoderModel(
        UMT5Config(
            vocab_size=vocabulary,
            d_model=width,
            d_kv=8,
            d_ff=2 * width,
            num_layers=2,
            num_heads=4,
            feed_forward_proj="gated-gelu",
            pad_token_id=0,
            eos_token_id=1,
        )
    )


def build_tokenizer(words: list[str]) -> T5TokenizerFast:
    """Knows `words` whole and spells the others."""
    space = "\u2581"  # SentencePiece's mark for the space before a word
    pieces = [(token, 0.0) for token in SPECIAL]
    pieces += [(space + word, -2.0) for word in words] + [(space, -4.0)] + [(c, -6.0) for c in CHARACTERS]
    tokenizer = Tokenizer(models.Unigram(pieces, unk_id=SPECIAL.index("<unk>")))
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace()
    tokenizer.decoder = decoders.Metaspace()
    tokenizer.post_processor = processors.TemplateProcessing(single="$A </s>", special_tokens=[("</s>", 1)])
    return T5TokenizerFast(
        tokenizer_object=tokenizer,
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_ids=0,
        model_max_length=512,
    )
